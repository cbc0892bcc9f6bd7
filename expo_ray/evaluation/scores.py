"""From samples to numbers: the scores of each problem, then their means over a set of problems with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expo_ray.evaluation.intervals import bootstrap_interval
from expo_ray.evaluation.majority import majority_at_k, votes
from expo_ray.evaluation.pass_at_k import pass_at_k
from expo_ray.evaluation.sample import Sample


@dataclass(frozen=True, slots=True)
class ProblemScores:
    """What the n samples of one problem come to."""

    level: int | None
    kind: str
    pass_at_k: list[float]
    """[n], k from 1."""
    majority_at_k: Sequence[float]
    """[n], k from 1."""
    truncated: float
    """Share of the samples cut off at the length limit."""
    no_answer: float
    """Share of the samples in which the verifier found no answer."""
    tokens: float
    """Mean length."""
    timeouts: int
    errors: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its bootstrap interval."""

    mean: float
    low: float
    high: float

    def summary(self) -> dict[str, float]:
        """The JSON form."""
        return {"mean": round(self.mean, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a set of problems: a level's, a kind's, or all."""

    problems: int
    pass_at_k: dict[int, Estimate]
    majority_at_k: dict[int, Estimate]
    truncated: Estimate
    no_answer: Estimate
    tokens: Estimate
    timeouts: int
    """Samples that the verifier gave up on; not right in any of the numbers above."""
    errors: int

    def summary(self) -> dict[str, Any]:
        """The JSON form; `accuracy` is the mean share of right samples, which is pass@1."""
        return {
            "problems": self.problems,
            "accuracy": self.pass_at_k[1].summary(),
            "pass_at_k": {str(k): estimate.summary() for k, estimate in self.pass_at_k.items()},
            "majority_at_k": {str(k): estimate.summary() for k, estimate in self.majority_at_k.items()},
            "truncated": self.truncated.summary(),
            "no_answer": self.no_answer.summary(),
            "tokens": self.tokens.summary(),
            "timeouts": self.timeouts,
            "errors": self.errors,
        }


def score_problem(samples: Sequence[Sample], task: str) -> ProblemScores:
    """The scores of one problem's samples.

    Args:
        samples: all n of them, at least one.
        task: conf/verifier's name; decides which answers are the same vote.
    """
    count = len(samples)
    outcomes = [sample.outcome for sample in samples]
    correct = outcomes.count("correct")
    return ProblemScores(
        level=samples[0].level,
        kind=samples[0].kind,
        pass_at_k=[pass_at_k(count, correct, k) for k in range(1, count + 1)],
        majority_at_k=majority_at_k(*votes(samples, task)),
        truncated=sum(sample.finish_reason == "length" for sample in samples) / count,
        no_answer=outcomes.count("no_answer") / count,
        tokens=sum(sample.tokens for sample in samples) / count,
        timeouts=outcomes.count("timeout"),
        errors=outcomes.count("error"),
    )


def scores_of(problems: Sequence[ProblemScores]) -> Scores:
    """Means over problems, at least one, all with the same number of samples."""
    values: NDArray[np.float64] = np.array(
        [[*p.pass_at_k, *p.majority_at_k, p.truncated, p.no_answer, p.tokens] for p in problems]
    )
    low, high = bootstrap_interval(values)
    columns = [Estimate(float(m), float(a), float(b)) for m, a, b in zip(values.mean(axis=0), low, high, strict=True)]
    samples = len(problems[0].pass_at_k)
    return Scores(
        problems=len(problems),
        pass_at_k=dict(enumerate(columns[:samples], start=1)),
        majority_at_k=dict(enumerate(columns[samples : 2 * samples], start=1)),
        truncated=columns[-3],
        no_answer=columns[-2],
        tokens=columns[-1],
        timeouts=sum(problem.timeouts for problem in problems),
        errors=sum(problem.errors for problem in problems),
    )
