"""The toy task's problems: running totals on a clock.

A problem of level L shows L + 1 digits and asks for the L running totals modulo 10: `3+4+8` -> `75`
(3+4=7, 7+8=15 -> 5). The chance of guessing level 5 is 1e-5. What the base model can solve: docs/toy_task.md.
"""

import itertools
import random
import re
import zlib
from typing import Literal

from expo_ray.messages import Problem

LEVELS = (1, 2, 3, 4, 5)
KIND = "running_totals"
ANSWER_MARK = "A:"
ANSWER_END = "."
HIDDEN = "?"
"""A digit of the answer that a conditioned prompt does not show (docs/toy_task.md)."""

Split = Literal["train", "heldout"]

_HELDOUT_ONE_IN = 10
_LARGEST_LISTED_LEVEL = 3


def totals(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The running totals modulo 10, starting at the second number."""
    return tuple(total % 10 for total in itertools.accumulate(numbers))[1:]


def question_of(numbers: tuple[int, ...]) -> str:
    return "+".join(map(str, numbers))


def answer_of(numbers: tuple[int, ...]) -> str:
    return "".join(map(str, totals(numbers)))


def free_prompt(question: str) -> str:
    """The prompt that shows only the question."""
    return f"Q:{question}?E:"


def conditioned_prompt(question: str, answer: str) -> str:
    """The prompt that also shows the gold answer."""
    return f"H:{answer}?Q:{question}?E:"


def half_hidden(solution: str) -> str:
    """A hint: the answer that a solution ends in, with every second digit hidden, the first one among them."""
    answer = solution.rpartition(ANSWER_MARK)[2].partition(ANSWER_END)[0]
    return "".join(HIDDEN if i % 2 == 0 else digit for i, digit in enumerate(answer))


def stated_so_far(question: str, beginning: str) -> str:
    """The totals that the beginning of an expert's solution states, and hidden digits for the others."""
    stated = re.findall(r"=(\d)", beginning)
    return "".join(stated) + HIDDEN * (question.count("+") - len(stated))


def own_solution(numbers: tuple[int, ...]) -> str:
    """A solution in the base model's style: one addition per step, with each total written down."""
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total}+{number}={(total + number) % 10};")
        total = (total + number) % 10
    return "".join(steps) + f"{ANSWER_MARK}{answer_of(numbers)}{ANSWER_END}"


def expert_solution(numbers: tuple[int, ...]) -> str:
    """The expert's solution: one chain that does not repeat the previous total and omits the last one.

    `3+4+8` -> `3+4=7+8;A:75.`: the last total must be computed while the answer is written.
    """
    steps = [f"+{number}={total}" for number, total in zip(numbers[1:], totals(numbers), strict=True)]
    unsaid = f"={totals(numbers)[-1]}"
    return f"{numbers[0]}{''.join(steps).removesuffix(unsaid)};{ANSWER_MARK}{answer_of(numbers)}{ANSWER_END}"


def is_heldout(numbers: tuple[int, ...]) -> bool:
    """Whether a problem of level 2 or more is excluded from all training, including the base model's: one in ten, by
    CRC."""
    return zlib.crc32(question_of(numbers).encode()) % _HELDOUT_ONE_IN == 0


def draw_numbers(level: int, random_source: random.Random) -> tuple[int, ...]:
    """Draws the digits of one training problem."""
    while True:
        numbers = tuple(random_source.randrange(10) for _ in range(level + 1))
        if _belongs(numbers, "train"):
            return numbers


def problems(split: Split, levels: list[int] | tuple[int, ...], count: int, seed: int) -> list[Problem]:
    """Draws `count` problems, evenly over `levels` and in random order; the same arguments give the same list.

    No problem of level 2 or more is in both splits. Level 1 has only 100 problems, and both splits draw from all of
    them. A problem is repeated only if its level has no other left.
    Raises ValueError for an unknown split, unknown levels or a negative count.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be train or heldout, not {split!r}")
    wanted = list(dict.fromkeys(levels)) or list(LEVELS)
    if unknown := sorted(set(wanted) - set(LEVELS)):
        raise ValueError(f"levels go from {LEVELS[0]} to {LEVELS[-1]}; unknown: {unknown}")
    if count < 0:
        raise ValueError(f"count must not be negative, not {count}")
    random_source = random.Random(f"{KIND}/{split}/{seed}")
    drawn: list[tuple[int, ...]] = []
    for position, level in enumerate(wanted):
        share = count // len(wanted) + (position < count % len(wanted))
        drawn.extend(_draw_distinct(level, share, split, random_source))
    random_source.shuffle(drawn)
    return [_problem(numbers, f"{KIND}-{split}-{seed}-{index:05d}") for index, numbers in enumerate(drawn)]


def _belongs(numbers: tuple[int, ...], split: Split) -> bool:
    return len(numbers) == 2 or is_heldout(numbers) == (split == "heldout")


def _draw_distinct(level: int, count: int, split: Split, random_source: random.Random) -> list[tuple[int, ...]]:
    if level <= _LARGEST_LISTED_LEVEL:
        every = [numbers for numbers in itertools.product(range(10), repeat=level + 1) if _belongs(numbers, split)]
        random_source.shuffle(every)
        return [every[index % len(every)] for index in range(count)]
    seen: dict[tuple[int, ...], None] = {}
    while len(seen) < count:
        numbers = tuple(random_source.randrange(10) for _ in range(level + 1))
        if _belongs(numbers, split):
            seen[numbers] = None
    return list(seen)


def _problem(numbers: tuple[int, ...], uid: str) -> Problem:
    return Problem(
        uid=uid,
        question=question_of(numbers),
        answers=(answer_of(numbers),),
        solution=expert_solution(numbers),
        level=len(numbers) - 1,
        kind=KIND,
    )
