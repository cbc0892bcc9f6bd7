"""The embedded world: its problems are right, its splits disjoint, the shipped base as docs/world.md says."""

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expo_ray.world import running_totals as world

NUMBERS = st.lists(st.integers(0, 9), min_size=2, max_size=6).map(tuple)
EVERY_LEVEL = list(world.LEVELS)


def totals_by_clock(numbers: tuple[int, ...]) -> str:
    """The answer by walking a clock's hand one mark at a time."""
    marks, hand, answer = string.digits, 0, ""
    for index, number in enumerate(numbers):
        for _ in range(number):
            hand = 0 if hand == 9 else hand + 1
        answer += marks[hand] if index else ""
    return answer


@given(NUMBERS)
def test_answer_is_the_running_totals_modulo_ten(numbers: tuple[int, ...]) -> None:
    assert world.answer_of(numbers) == totals_by_clock(numbers)
    assert world.numbers_of(world.question_of(numbers)) == numbers


@given(NUMBERS)
def test_both_styles_end_in_the_gold_answer_and_differ(numbers: tuple[int, ...]) -> None:
    own, expert = world.own_solution(numbers), world.expert_solution(numbers)
    for solution in (own, expert):
        assert solution.rsplit(world.ANSWER_MARK, 1)[1] == totals_by_clock(numbers) + "."
        assert solution.count(world.ANSWER_END) == 1
        assert len(solution) + 1 <= world.MAX_COMPLETION_TOKENS
    assert own.split(world.ANSWER_MARK)[0] != expert.split(world.ANSWER_MARK)[0]


@given(NUMBERS)
def test_each_step_of_the_own_solution_is_a_true_addition(numbers: tuple[int, ...]) -> None:
    steps = world.own_solution(numbers).split(world.ANSWER_MARK)[0].rstrip(";").split(";")
    assert len(steps) == len(numbers) - 1
    for step in steps:
        left, result = step.split("=")
        first, second = left.split("+")
        assert (int(first) + int(second) - int(result)) % 10 == 0


@given(NUMBERS)
def test_the_expert_writes_only_true_totals_and_skips_some(numbers: tuple[int, ...]) -> None:
    blocks = world.expert_solution(numbers).split(world.ANSWER_MARK)[0].rstrip(",").split(",")
    seen = ""
    for block in blocks:
        added, total = block.split(">")
        seen += added
        assert int(total) == sum(map(int, seen)) % 10
    assert seen == "".join(map(str, numbers))
    assert len(blocks) == len(numbers) // 2


def test_examples_of_the_format() -> None:
    assert world.free_prompt("3+4+8") == "Q:3+4+8?E:"
    assert world.own_solution((3, 4, 8)) == "3+4=7;7+8=5;A:75."
    assert world.expert_solution((3, 4, 8, 2)) == "348>5,2>7,A:757."


def test_problems_are_dealt_evenly_and_the_same_for_a_seed() -> None:
    first = world.problems("train", EVERY_LEVEL, 52, seed=3)
    assert first == world.problems("train", EVERY_LEVEL, 52, seed=3)
    assert [p.question for p in first] != [p.question for p in world.problems("train", EVERY_LEVEL, 52, seed=4)]
    assert [sum(p.level == level for p in first) for level in EVERY_LEVEL] == [11, 11, 10, 10, 10]
    assert len({p.uid for p in first}) == 52
    assert all(p.question.count("+") == p.level for p in first)


def test_heldout_problems_are_in_no_training_set() -> None:
    levels = [2, 3, 4, 5]
    heldout = {p.question for p in world.problems("heldout", levels, 400, seed=0)}
    trained = {p.question for p in world.problems("train", levels, 20_000, seed=1)}
    source = random.Random(0)
    lessons = {world.question_of(world.draw_numbers(source.choice(levels), source)) for _ in range(20_000)}
    assert len(heldout) > 350
    assert not heldout & trained
    assert not heldout & lessons


def test_problems_refuses_what_it_cannot_make() -> None:
    with pytest.raises(ValueError, match="unknown: \\[6\\]"):
        world.problems("train", [6], 1, seed=0)
    with pytest.raises(ValueError, match="train or heldout"):
        world.problems("test", [1], 1, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        world.problems("train", [1], -1, seed=0)
