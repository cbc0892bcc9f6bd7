"""majority@k: how often the most frequent answer among k samples is right (Wang et al. 2022, arXiv 2203.11171)."""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from expo_ray.evaluation.sample import Sample
from expo_ray.verifier.clean import clean
from expo_ray.verifier.limits import NotDecided
from expo_ray.verifier.number import rational

MATHEMATICAL = ("math", "gsm8k")
"""Tasks whose answers are written in many ways; those of all others are compared as texts."""
MAX_NORMALISED = 200
"""Characters of an answer that is brought into normal form; a longer one is compared as it stands."""


@lru_cache(maxsize=1 << 14)
def normal_form(answer: str, task: str) -> str | Fraction:
    """One spelling for answers that say the same: the number's exact value, else the verifier's clean LaTeX.

    Args:
        answer: what the verifier extracted.
        task: conf/verifier's name.
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
    """Votes for each right answer, votes for each wrong one (both ascending), and samples without an answer.

    Two samples vote for the same answer when its normal forms are equal and the verifier judged them alike. An
    answer that the verifier could not decide on has its votes and is not right.
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

    Among tied answers one is drawn at random, all equally likely. Samples without an answer do not vote; where no
    sample has one, the result is wrong. The value is exact: all subsets are counted, none is drawn. Every subset in
    which a right answer has t votes, r others have t as well and all the rest fewer, counts 1 / (1 + r).

    Args:
        right: votes for each right answer.
        wrong: votes for each wrong answer.
        silent: samples without an answer.

    Raises:
        ValueError: no sample at all, or an answer without a vote.
    """
    samples = sum(right) + sum(wrong) + silent
    if samples < 1 or silent < 0 or min((*right, *wrong), default=1) < 1:
        raise ValueError(f"votes {right} and {wrong} with {silent} silent samples are no vote")
    subsets = np.zeros(samples + 1)
    for index, most in enumerate(right):
        rivals = (*right[:index], *right[index + 1 :], *wrong)
        for count in range(1, most + 1):
            others = _draws_of_others(count, rivals, silent, samples - most)
            subsets[count : count + len(others)] += math.comb(most, count) * others
    return tuple(float(subsets[k] / math.comb(samples, k)) for k in range(1, samples + 1))


def _draws_of_others(count: int, rivals: tuple[int, ...], silent: int, total: int) -> NDArray[np.float64]:
    """Ways to draw x of the `total` other samples with no rival above `count` votes, each over 1 + the ties; [x]."""
    # Whoever cannot reach `count` votes is drawn freely, like the silent samples.
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
