"""Gold answers before a run: what cannot be graded is repaired where it plainly holds an answer, else named."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from expo_ray.config.errors import DataError
from expo_ray.config.schema import VerifierConfig
from expo_ray.messages import Problem
from expo_ray.verifier import extract
from expo_ray.verifier.math.number import NotDecided
from expo_ray.verifier.tasks import Gsm8kTask, MathTask, make_task

CHECKED = ("math", "gsm8k")
_CONTROLS = {"\t": "\\t", "\x0c": "\\f", "\x08": "\\b", "\r": "\\r", "\x0b": "\\v", "\x07": "\\a"}
_VOID = re.compile(r"(?:nan|none|null|n/a|\?+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Golds:
    """The problems with their golds as they can be graded, and what was found."""

    problems: list[Problem]
    repaired: int
    unusable: int
    first: str
    """One golden answer that cannot be graded, with its problem; empty where there is none."""

    def text(self) -> str:
        """One line for the plan."""
        count = len(self.problems)
        first = f", first {self.first}" if self.first else ""
        return f"gold answers: {count} checked, {self.repaired} repaired, {self.unusable} cannot be graded{first}"


def checked_golds(problems: Sequence[Problem], config: VerifierConfig) -> Golds:
    """Grade every gold answer against itself.

    Raises:
        DataError: more than `verifier.max_unusable_golds` of the problems have no gold that can be graded.
    """
    if config.name not in CHECKED:
        return Golds(list(problems), 0, 0, "")
    kept: list[Problem] = []
    repaired, unusable = 0, []
    for problem in problems:
        golds = [repair(config.name, gold) for gold in problem.answers]
        usable = tuple(gold for gold in golds if gold is not None)
        if not usable:
            unusable.append(problem)
        repaired += bool(usable) and usable != problem.answers
        kept.append(dataclasses.replace(problem, answers=usable) if usable else problem)
    first = f"{unusable[0].uid}: {unusable[0].answers[0]!r:.60}" if unusable else ""
    if len(unusable) > config.max_unusable_golds * len(problems):
        raise DataError(
            f"{len(unusable)} of {len(problems)} gold answers cannot be graded by verifier.name={config.name}, first "
            f"{first}: fix the data, set data.answer_key, or raise "
            f"verifier.max_unusable_golds={config.max_unusable_golds}"
        )
    return Golds(kept, repaired, len(unusable), first)


@lru_cache(maxsize=1 << 16)
def repair(name: str, gold: str) -> str | None:
    """A gold answer as it can be graded: itself, or the answer that it plainly holds; None without one."""
    task = make_task(name, {"name": name})
    assert isinstance(task, MathTask)
    plain = re.sub("[\x07-\x0d](?=[A-Za-z])", lambda match: _CONTROLS.get(match.group(), match.group()), gold)
    plain = plain if "\\begin" in plain else re.sub(r"\\\\(?=[A-Za-z%$!,;{}(])", r"\\", plain)
    held = [found for find in (extract.boxed, extract.hashed, extract.stated) if (found := find(plain)) is not None]
    candidates = [*held, task.gold_answer(gold), plain]
    return next((text for text in candidates if _usable(task, text)), None)


def _usable(task: MathTask, gold: str) -> bool:
    from expo_ray.verifier.math import compare

    if _VOID.fullmatch(gold.strip()) or re.search(r"[\x00-\x09\x0b-\x1f\x7f]", gold.strip(" ")):
        return False
    said = task.extract(f"#### {gold}" if isinstance(task, Gsm8kTask) else f"\\boxed{{{gold}}}")
    try:
        # The same text is right without being read, so that it must be readable as well.
        return said is not None and compare.is_readable(gold) and bool(task.grade(said, gold, {})[0])
    except NotDecided:
        return False
