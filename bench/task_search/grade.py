"""Grades the samples as a run would, and makes the table of the search."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from expo_ray.config.schema import VerifierConfig
from expo_ray.leaks import mentions_given_answer
from expo_ray.verifier.pool import Item, VerifierPool
from expo_ray.verifier.tasks import EVALUATING_SCORERS

FREE_BELOW, CONDITIONED_ABOVE = 0.05, 0.3
"""Bounds on a level's free pass@k, for all its samples, and its answer-conditioned pass@1."""
SAMPLES = 8
"""Free samples that each problem needs for it: of fewer, more levels would seem unsolved."""
CONDITIONED = "conditioned"
COLUMNS = (
    "level", "problems", "free pass@1", "free pass@{k}", "conditioned pass@1", "of these usable", "leaks", "cut off",
    "tokens", "within the bounds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Graded:
    """One sample with what a run would make of it."""

    row: dict[str, Any]
    """The problem's line of the prompts file."""
    kind: str
    """free or conditioned."""
    text: str
    tokens: int
    stopped: bool
    correct: bool
    leak: str | None
    """The phrase that mentions the given answer."""

    @property
    def usable(self) -> bool:
        """Whether ExP-GRPO's defaults would train on it as it is: right, ended, and without a leak."""
        return self.correct and self.stopped and self.leak is None


def grade(prompts: Path, samples: Path) -> list[Graded]:
    """Grades every sample with the verifier task of its problem."""
    rows = {row["id"]: row for row in _lines(prompts)}
    drawn = [
        (rows[line["id"]], kind, each)
        for line in _lines(samples)
        for kind in ("free", CONDITIONED)
        for each in line[kind]
    ]
    right: dict[int, bool] = {}
    for evaluates in (False, True):  # a pool that may evaluate answers has a process for each, which is slow
        chosen = [index for index, (row, _, _) in enumerate(drawn) if (row["task"] in EVALUATING_SCORERS) == evaluates]
        if chosen:
            pool = VerifierPool(VerifierConfig(run_answers=evaluates))
            try:
                verdicts = pool.judge([_item(drawn[index][0], drawn[index][2]["text"]) for index in chosen])
            finally:
                pool.close()
            right |= {index: each.outcome == "correct" for index, each in zip(chosen, verdicts, strict=True)}
    return [
        Graded(row, kind, **each, correct=right[index], leak=mentions_given_answer(each["text"]))
        for index, (row, kind, each) in enumerate(drawn)
    ]


def table(graded: list[Graded]) -> str:
    """The search as a Markdown table, a row for each level, with 95 % intervals.

    Where a level has fewer free samples than others, its k stands in its cell.
    Leaks, cut-off samples and mean tokens are those of the answer-conditioned samples.
    """
    levels: dict[str, list[Graded]] = defaultdict(list)
    for each in graded:
        levels[f"{each.row['task']}/{each.row['level']}"].append(each)
    most = max(_fewest(of_level) for of_level in levels.values())
    lines = [" | ".join(COLUMNS).format(k=most), "|".join("---" for _ in COLUMNS)]
    lines += [" | ".join(_cells(name, of_level, most)) for name, of_level in levels.items()]
    return "\n".join(f"| {line} |" for line in lines)


def _fewest(graded: list[Graded]) -> int:
    return min(len(of_problem) for of_problem in _by_problem(graded, "free"))


def _cells(level: str, graded: list[Graded], most: int) -> list[str]:
    free, conditioned = _by_problem(graded, "free"), _by_problem(graded, CONDITIONED)
    flat = [each for of_problem in conditioned for each in of_problem]
    first = [fmean(each.correct for each in of_problem) for of_problem in free]
    any_of = [float(any(each.correct for each in of_problem)) for of_problem in free]
    explained = [fmean(each.correct for each in of_problem) for of_problem in conditioned]
    usable = [fmean(each.usable for each in of_problem) for of_problem in conditioned]
    k = _fewest(graded)
    unsolved = k >= SAMPLES and fmean(any_of) < FREE_BELOW
    first_k = _share(any_of) + (f", k={k}" if k < most else "")
    within = [name for name, of in (("right", explained), ("usable", usable)) if fmean(of) > CONDITIONED_ABOVE]
    return [
        level,
        str(len(free)),
        _share(first),
        first_k,
        *(_share(shares) for shares in (explained, usable)),
        f"{fmean(each.leak is not None for each in flat):.2f}",
        f"{fmean(not each.stopped for each in flat):.2f}",
        f"{fmean(each.tokens for each in flat):.0f}",
        ", ".join(within) if unsolved else "",
    ]


def _by_problem(graded: list[Graded], kind: str) -> list[list[Graded]]:
    found: dict[str, list[Graded]] = defaultdict(list)
    for each in graded:
        if each.kind == kind:
            found[each.row["id"]].append(each)
    return list(found.values())


def _share(shares: list[float]) -> str:
    low, high = wilson(fmean(shares), len(shares))
    return f"{fmean(shares):.2f} ({low:.2f} to {high:.2f})"


def wilson(mean: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927); unlike a bootstrap's it has a width where nothing is right.

    Args:
        mean: mean over problems of values from 0 to 1. If they are not only 0 and 1, the interval is too wide.
        count: number of problems.
        z: quantile of the normal distribution.
    """
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _item(row: dict[str, Any], text: str) -> Item:
    return text, (row["answer"],), {"question": row["question"], **row["meta"]}, row["verifier"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_golds(prompts: Path) -> list[str]:
    """Ids of the problems whose gold answer, boxed, is not graded as right."""
    rows = _lines(prompts)
    pool = VerifierPool(VerifierConfig(run_answers=True))
    try:
        verdicts = pool.judge([_item(row, f"\\boxed{{{row['answer']}}}") for row in rows])
    finally:
        pool.close()
    return [row["id"] for row, verdict in zip(rows, verdicts, strict=True) if verdict.outcome != "correct"]
