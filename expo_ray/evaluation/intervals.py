"""Bootstrap confidence intervals of means over problems (Efron's percentile method)."""

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 2507
"""Always the same, so that the same samples give the same intervals whatever the run's seed is."""
_BLOCK = 4_000_000
"""Draws held in memory at once."""


def bootstrap_interval(
    values: NDArray[np.float64], confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds of the mean of each column; whole rows (problems) are drawn with replacement.

    Args:
        values: [P, M] of M quantities for each of P problems; P at least 1.
        confidence: share of the resampled means between the bounds.
        resamples: how many times P problems are drawn.
        seed: of the draws.

    Returns:
        [M] and [M].
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
