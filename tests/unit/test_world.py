"""The toy task: its problems are right, its splits disjoint, the shipped base as docs/toy_task.md says."""

import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen2ForCausalLM

from bench import base_model
from expo_ray.world import running_totals as world
from expo_ray.world import tokenizer

BASE = Path(__file__).resolve().parents[2] / "expo_ray/world/base"
NUMBERS = st.lists(st.integers(0, 9), min_size=2, max_size=6).map(tuple)
EVERY_LEVEL = list(world.LEVELS)


MAX_COMPLETION_TOKENS = 48  # conf/experiment/demo.yaml


def numbers_of(question: str) -> tuple[int, ...]:
    return tuple(int(part) for part in question.split("+"))


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
    assert numbers_of(world.question_of(numbers)) == numbers


@given(NUMBERS)
def test_both_styles_end_in_the_gold_answer_and_differ(numbers: tuple[int, ...]) -> None:
    own, expert = world.own_solution(numbers), world.expert_solution(numbers)
    for solution in (own, expert):
        assert solution.rsplit(world.ANSWER_MARK, 1)[1] == totals_by_clock(numbers) + "."
        assert solution.count(world.ANSWER_END) == 1
        assert len(solution) + 1 <= MAX_COMPLETION_TOKENS
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
def test_the_expert_writes_true_totals_and_leaves_the_last_unsaid(numbers: tuple[int, ...]) -> None:
    first, *links = world.expert_solution(numbers).split(";" + world.ANSWER_MARK)[0].split("+")
    assert first == str(numbers[0])
    written = [link.split("=") for link in links]
    assert [int(link[0]) for link in written] == list(numbers[1:])
    assert "".join(link[1] for link in written[:-1]) == totals_by_clock(numbers)[:-1]
    assert len(written[-1]) == 1


def test_examples_of_the_format() -> None:
    assert world.free_prompt("3+4+8") == "Q:3+4+8?E:"
    assert world.own_solution((3, 4, 8)) == "3+4=7;7+8=5;A:75."
    assert world.expert_solution((3, 4, 8)) == "3+4=7+8;A:75."


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


def test_a_partial_hint_hides_at_most_half_and_changes_no_digit() -> None:
    source = random.Random(1)
    hints = [base_model.partial_hint("79451", source) for _ in range(200)]
    assert {hint.count("?") for hint in hints} == {0, 1, 2}
    assert all(h in ("?", d) for hint in hints for h, d in zip(hint, "79451", strict=True))


def test_the_base_is_taught_no_free_solution_above_level_two() -> None:
    source = random.Random(2)
    lessons = [base_model.lesson(source, base_model.BaseRecipe()) for _ in range(3000)]
    free = [prompt for prompt, _ in lessons if prompt.startswith("Q:")]
    assert len(free) > 1000
    assert {prompt.count("+") for prompt in free} == {1, 2}
    assert {prompt.count("+") for prompt, _ in lessons} == {1, 2, 3, 4, 5}


def test_tokenizer_gives_one_token_a_character_and_its_text_back() -> None:
    built = tokenizer.build_tokenizer()
    text = world.conditioned_prompt("3+4+8", "75") + world.own_solution((3, 4, 8)) + world.expert_solution((3, 4, 8))
    ids = built(text).input_ids
    assert ids == tokenizer.encode(text)
    assert len(ids) == len(text)
    assert built.decode([*ids, built.eos_token_id], skip_special_tokens=True) == text
    assert built.eos_token_id not in ids
    assert built(" ").input_ids == [built.unk_token_id]


def test_the_shipped_folder_is_a_whole_model(shipped: Qwen2ForCausalLM) -> None:
    folder = BASE
    auto = AutoTokenizer.from_pretrained(folder)
    recipe = base_model.BaseRecipe()
    assert auto.get_vocab() == tokenizer.build_tokenizer().get_vocab()
    assert (auto.eos_token_id, auto.pad_token_id) == (tokenizer.EOS_ID, tokenizer.PAD_ID)
    assert shipped.generation_config.eos_token_id == tokenizer.EOS_ID
    assert (shipped.config.hidden_size, shipped.config.num_hidden_layers) == (recipe.hidden_size, recipe.layers)
    assert shipped.lm_head.weight is shipped.model.embed_tokens.weight
    assert {str(parameter.dtype) for parameter in shipped.parameters()} == {"torch.float32"}


def test_the_base_solves_levels_one_and_two_and_no_others(shipped: Qwen2ForCausalLM) -> None:
    pass_at_4 = {
        level: pass_rate(shipped, level, world.free_prompt, samples=4, temperature=0.7) for level in EVERY_LEVEL
    }
    assert pass_at_4[1] >= 0.95 and pass_at_4[2] >= 0.95
    assert pass_at_4[3] < 0.25 and pass_at_4[4] < 0.1 and pass_at_4[5] < 0.1


def test_the_base_explains_every_level(shipped: Qwen2ForCausalLM) -> None:
    for level in EVERY_LEVEL:
        assert pass_rate(shipped, level, told, samples=1, temperature=1.0) >= 0.9


def test_experts_are_less_likely_than_own_solutions(shipped: Qwen2ForCausalLM) -> None:
    numbers = [numbers_of(problem.question) for problem in world.problems("heldout", [5], 30, seed=0)]
    own = mean_nll(shipped, [(world.free_prompt(world.question_of(n)), world.own_solution(n)) for n in numbers])
    expert = mean_nll(shipped, [(world.free_prompt(world.question_of(n)), world.expert_solution(n)) for n in numbers])
    assert expert > 2 * own


@pytest.fixture(scope="module")
def shipped() -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(BASE).eval()


def told(question: str) -> str:
    """The answer-conditioned prompt of a question."""
    return world.conditioned_prompt(question, world.answer_of(numbers_of(question)))


def mean_nll(model: Qwen2ForCausalLM, pairs: list[tuple[str, str]]) -> float:
    """Nats a token of the solutions, end token included."""
    ids, labels = base_model.batch_of(pairs)
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


def pass_rate(
    model: Qwen2ForCausalLM, level: int, prompt_of: Callable[[str], str], samples: int, temperature: float
) -> float:
    """Share of 50 held-out problems of which one of `samples` completions is right, decoded with transformers."""
    torch.manual_seed(0)
    chosen = world.problems("heldout", [level], 50, seed=0)
    prompts = torch.tensor([tokenizer.encode(prompt_of(p.question)) for p in chosen for _ in range(samples)])
    rows = model.generate(
        prompts, do_sample=True, temperature=temperature, top_k=0, max_new_tokens=MAX_COMPLETION_TOKENS
    )
    texts = tokenizer.build_tokenizer().batch_decode(rows[:, prompts.shape[1] :], skip_special_tokens=True)
    right = [text.endswith(f"{world.ANSWER_MARK}{chosen[i // samples].answers[0]}.") for i, text in enumerate(texts)]
    return sum(any(right[i : i + samples]) for i in range(0, len(right), samples)) / len(chosen)
