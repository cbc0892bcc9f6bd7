"""What a chart of the report is: recorded numbers of run groups as plain dictionaries for the page's script."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expo_ray.reporting.groups import RunGroup

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


RAW, SMOOTH = "every update", "moving mean over a tenth of the run"

Curves = list[dict[int, float]]
"""For each run that measured it: updates done -> value."""


@dataclass(frozen=True)
class Section:
    """A part of the page that shows charts."""

    key: str
    title: str
    told: str
    """How to read it."""
    empty: str
    """What is said in place of charts where nothing was measured."""
    charts: list[dict[str, Any]]
    legend: list[str]
    """One entry for each number that a series has as `entry`."""
    names: list[str]
    """The same in short, for tooltips and tables."""
    styles: str = "groups"
    """How the script draws the entries: groups, kinds or phases."""
    folded: bool = False
    """Shown only when it is opened."""


@dataclass(frozen=True)
class Spec:
    """One recorded number as a chart."""

    name: str
    title: str
    unit: str
    share: bool = False
    """0 to 1: the axis shows all of it."""
    log: bool = False
    zero_is_absent: bool = False
    """A run whose every value is 0 has no such term (a mean over nothing is recorded as 0)."""
    bound: str = ""
    """Another recorded number or a dotted configuration key, drawn as a horizontal line."""


def group_chart(spec: Spec, curves: Sequence[Curves], bounds: Sequence[float] = ()) -> dict[str, Any] | None:
    """One line with a band for each group; None where no group measured it.

    Two variants, plain and smoothed, where the longest run is long enough for them to differ. A bound is drawn
    where all groups have the same.
    """
    if not any(curves):
        return None
    width = smoothing_width([curve for of_group in curves for curve in of_group])
    variants = {RAW: curves}
    if width > 1:
        variants[SMOOTH] = [[moving_mean(curve, width) for curve in of_group] for of_group in curves]
    chart: dict[str, Any] = {"title": spec.title, "unit": spec.unit, "share": spec.share, "log": spec.log}
    if bounds and len(set(bounds)) == 1:
        chart["bound"] = {"label": spec.bound, "value": bounds[0]}
    chart["variants"] = {name: group_series(of) for name, of in variants.items()}
    return chart


def group_series(curves: Sequence[Curves]) -> list[dict[str, Any]]:
    """`over_seeds` of each group that has a curve; `entry` is the group's number."""
    return [{"entry": i} | over_seeds(of_group) for i, of_group in enumerate(curves) if of_group]


def spec_charts(specs: Sequence[Spec], groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """The charts of those numbers that some group measured."""
    found = [group_chart(spec, [_curves(spec, group) for group in groups], _bounds(spec, groups)) for spec in specs]
    return [chart for chart in found if chart]


def _curves(spec: Spec, group: RunGroup) -> Curves:
    return [curve for curve in group.curves(spec.name) if not spec.zero_is_absent or any(curve.values())]


def _bounds(spec: Spec, groups: Sequence[RunGroup]) -> list[float]:
    if not spec.bound:
        return []
    recorded = [value for group in groups for curve in group.curves(spec.bound) for value in curve.values()]
    configured = [float(g.settings[spec.bound]) for g in groups if spec.bound in g.settings]
    return recorded or configured


def group_legend(groups: Sequence[RunGroup]) -> list[str]:
    """The groups' labels, with the seeds that a line is the mean of."""
    return [f"{group.label}: {_seeds(group)}" for group in groups]


def _seeds(group: RunGroup) -> str:
    recorded = [seed for seed, run in zip(group.seeds, group.runs, strict=True) if run.metrics or run.evaluations]
    missing = len(group.runs) - len(recorded)
    seeds = ", ".join(map(str, recorded))
    if not recorded:
        return "nothing recorded yet"
    told = f"seed {seeds}" if len(recorded) == 1 else f"mean of seeds {seeds}; band: lowest to highest"
    return f"{told}; {missing} more without records" if missing else told
