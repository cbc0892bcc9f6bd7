"""One graded completion of an evaluation, as it stands in samples.jsonl."""

from dataclasses import dataclass
from typing import Literal

from expo_ray.messages import Group, Outcome


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of an evaluation's samples.jsonl; the fields are its keys."""

    uid: str
    """The problem's."""
    level: int | None
    kind: str
    sample: int
    """Which of the problem's completions, from 0."""
    answers: list[str]
    """The gold answers."""
    text: str
    outcome: Outcome
    extracted: str | None
    tokens: int
    finish_reason: Literal["stop", "length"]


def samples_of(group: Group) -> list[Sample]:
    """The free completions of a graded group, in their order."""
    problem = group.rollout.prompt.problem
    graded = zip(group.rollout.completions, group.verdicts, strict=True)
    return [
        Sample(
            uid=problem.uid,
            level=problem.level,
            kind=problem.kind,
            sample=index,
            answers=list(problem.answers),
            text=completion.text,
            outcome=verdict.outcome,
            extracted=verdict.extracted,
            tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
        )
        for index, (completion, verdict) in enumerate(graded)
    ]
