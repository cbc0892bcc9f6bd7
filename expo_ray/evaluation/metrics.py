"""Scores of an evaluation: pass@k and majority@k of each problem, and means over problems with bootstrap intervals."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from expo_ray.messages import Group, Outcome
from expo_ray.verifier.math.clean import clean
from expo_ray.verifier.math.value import rational
from expo_ray.verifier.math.words import NotDecided


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of an evaluation's samples.jsonl; the fields are its keys."""

    uid: str
    """The problem's identifier."""
    level: int | None
    kind: str
    sample: int
    """Index of the completion among the problem's, from 0."""
    answers: list[str]
    """The gold answers."""
    text: str
    outcome: Outcome
    extracted: str | None
    tokens: int
    finish_reason: Literal["stop", "length"]


def samples_of(group: Group) -> list[Sample]:
    """Lists the free completions of a verified group, in their order."""
    problem = group.rollout.prompt.problem
    verified = zip(group.rollout.completions, group.verdicts, strict=True)
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
        for index, (completion, verdict) in enumerate(verified)
    ]


CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 2507
"""Fixed, so that the same samples give the same intervals whatever the run's seed is."""
_BLOCK = 4_000_000
"""Number of draws held in memory at once."""


def bootstrap_interval(
    values: NDArray[np.float64], confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bootstraps lower and upper bounds of the mean of each column; rows (problems) are drawn with replacement.

    Args:
        values: [P, M] of M quantities for each of P problems; P at least 1.
        confidence: share of the resampled means between the bounds.
        resamples: how many times P problems are drawn.
        seed: seed of the draws.

    Returns:
        [M] lower and [M] upper bounds.
    """
    random = np.random.default_rng(seed)
    problems = len(values)
    block = max(1, _BLOCK // problems)
    means = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(problems, size=(rows, problems)) + problems * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * problems).reshape(rows, problems)
        means[start : start + rows] = times @ values / problems
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return low, high


MATHEMATICAL = ("math", "gsm8k")
"""Tasks whose answers can be written in many ways; answers of all others are compared as text."""
MAX_NORMALISED = 200
"""Longest answer, in characters, that is normalised; a longer one is compared as it is."""


@lru_cache(maxsize=1 << 14)
def normal_form(answer: str, task: str) -> str | Fraction:
    """Normalises an answer so that equal answers compare equal: a number's exact value, or the verifier's clean LaTeX.

    Args:
        answer: the answer that the verifier extracted.
        task: name of the verifier task.
    """
    text = answer.strip()
    if task not in MATHEMATICAL or len(text) > MAX_NORMALISED:
        return text
    cleaned = clean(text)
    try:
        value = rational(cleaned)
    except NotDecided:
        return cleaned
    return cleaned if value is None else value


def votes(samples: Sequence[Sample], task: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Counts the votes for each right answer and for each wrong one (both ascending), and samples without an answer.

    Two samples vote for the same answer if its normal forms and the verifier's decisions are equal. An answer that
    the verifier could not decide on gets its votes, but does not count as right.
    """
    counts: Counter[tuple[str | Fraction, bool]] = Counter()
    silent = 0
    for sample in samples:
        if sample.extracted is None:
            silent += 1
        else:
            counts[normal_form(sample.extracted, task), sample.outcome == "correct"] += 1
    right = sorted(count for (_form, is_right), count in counts.items() if is_right)
    wrong = sorted(count for (_form, is_right), count in counts.items() if not is_right)
    return tuple(right), tuple(wrong), silent


@lru_cache(maxsize=1 << 14)
def majority_at_k(right: tuple[int, ...], wrong: tuple[int, ...], silent: int) -> tuple[float, ...]:
    """Probability that the plurality answer of k samples, drawn without replacement from n, is right; k = 1 to n.

    Ties are broken at random, all tied answers being equally likely. Samples without an answer do not vote; if no
    sample has one, the result is wrong. The value is exact, because all subsets are counted: a subset in which a right
    answer has t votes, r others have t votes too and all the rest fewer counts 1 / (1 + r).

    Args:
        right: votes for each right answer.
        wrong: votes for each wrong answer.
        silent: samples without an answer.

    Raises:
        ValueError: there is no sample, or an answer without a vote.
    """
    samples = sum(right) + sum(wrong) + silent
    if samples < 1 or silent < 0 or min((*right, *wrong), default=1) < 1:
        raise ValueError(f"votes {right} and {wrong} with {silent} silent samples are not a valid vote")
    subsets = np.zeros(samples + 1)
    for index, most in enumerate(right):
        rivals = (*right[:index], *right[index + 1 :], *wrong)
        for count in range(1, most + 1):
            others = _draws_of_others(count, rivals, silent, samples - most)
            subsets[count : count + len(others)] += math.comb(most, count) * others
    return tuple(float(subsets[k] / math.comb(samples, k)) for k in range(1, samples + 1))


def _draws_of_others(count: int, rivals: tuple[int, ...], silent: int, total: int) -> NDArray[np.float64]:
    """Ways to draw x of the `total` other samples with no rival above `count` votes, each over 1 + the ties; [x]."""
    # Rivals that cannot reach `count` votes are drawn freely, like samples without an answer.
    free = silent + sum(rival for rival in rivals if rival < count)
    strong = [rival for rival in rivals if rival >= count]
    ways = np.zeros((total + 1, len(strong) + 1))  # [x, ties]
    ways[: free + 1, 0] = [float(math.comb(free, x)) for x in range(free + 1)]
    for rival in strong:
        before = ways
        ways = before.copy()  # none of this rival's samples
        for drawn in range(1, count):
            ways[drawn:] += math.comb(rival, drawn) * before[:-drawn]
        ways[count:, 1:] += math.comb(rival, count) * before[:-count, :-1]
    return np.asarray(ways @ (1.0 / np.arange(1, len(strong) + 2)))


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples, drawn without replacement from n, is correct.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises:
        ValueError: if not 0 <= correct <= samples or not 1 <= k <= samples.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples with {correct} correct is not defined")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


@dataclass(frozen=True, slots=True)
class ProblemScores:
    """The scores of one problem's n samples."""

    level: int | None
    kind: str
    pass_at_k: list[float]
    """[n] values for k = 1 to n."""
    majority_at_k: Sequence[float]
    """[n] values for k = 1 to n."""
    truncated: float
    """Share of the samples cut off at the length limit."""
    no_answer: float
    """Share of the samples in which the verifier found no answer."""
    tokens: float
    """Mean length of the samples, in tokens."""
    timeouts: int
    errors: int
    source: str = ""
    """Name of the evaluation set, if there are several (`data.eval_sources`)."""


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
    """Samples that the verifier gave up on; none of the numbers above counts them as right."""
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


def score_problem(samples: Sequence[Sample], task: str, source: str = "") -> ProblemScores:
    """Scores one problem's samples.

    Args:
        samples: all n of them, at least one.
        task: name of the verifier task, by which answers count as the same vote.
        source: name of the problem's evaluation set.
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
        source=source,
    )


def scores_of(problems: Sequence[ProblemScores]) -> Scores:
    """Averages over problems, at least one, all with the same number of samples."""
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
