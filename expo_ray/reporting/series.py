"""Curves over seeds: mean, lowest and highest value at each update, plain or smoothed, thinned for drawing."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_POINTS = 400
"""More points than this are not told apart on a screen; longer curves show each n-th update and the last."""


def moving_mean(curve: dict[int, float], width: int) -> dict[int, float]:
    """The mean of each value and the up to `width` - 1 recorded values before it."""
    steps = sorted(curve)
    sums = np.concatenate([[0.0], np.cumsum([curve[step] for step in steps])])
    ends = np.arange(1, len(steps) + 1)
    starts = np.maximum(ends - width, 0)
    return dict(zip(steps, ((sums[ends] - sums[starts]) / (ends - starts)).tolist(), strict=True))


def smoothing_width(curves: Sequence[dict[int, float]]) -> int:
    """A tenth of the longest curve, at least 1 (no smoothing)."""
    return max((len(curve) // 10 for curve in curves), default=1) or 1


def over_seeds(curves: Sequence[dict[int, float]], max_points: int = MAX_POINTS) -> dict[str, Any]:
    """What a chart draws of one group.

    Returns:
        x: updates; mean, low, high: over the seeds that have a value there (low and high only where there are
        several seeds); n: how many those are, where not all of them reach every x.
    """
    steps = sorted({step for curve in curves for step in curve})
    stride = -(-len(steps) // max_points) if steps else 1
    steps = [step for i, step in enumerate(steps) if i % stride == 0 or i == len(steps) - 1]
    values = [[curve[step] for curve in curves if step in curve] for step in steps]
    found: dict[str, Any] = {"x": steps, "mean": [short(sum(of) / len(of)) for of in values]}
    if len(curves) > 1:
        found |= {"low": [short(min(of)) for of in values], "high": [short(max(of)) for of in values]}
    if any(len(of) < len(curves) for of in values):
        found["n"] = [len(of) for of in values]
    return found


def short(value: float) -> float:
    """The value to eight significant digits: what the records have, without the tail of a float."""
    return float(f"{value:.8g}")
