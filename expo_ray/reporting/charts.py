"""The report's charts: recorded numbers of run groups as plain dictionaries, which the page's script draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from expo_ray.reporting.groups import RunGroup

MAX_POINTS = 400
"""A screen cannot resolve more points; longer curves show each n-th update and the last."""


def moving_mean(curve: dict[int, float], width: int) -> dict[int, float]:
    """Returns the mean of each value and the up to `width` - 1 recorded values before it."""
    steps = sorted(curve)
    sums = np.concatenate([[0.0], np.cumsum([curve[step] for step in steps])])
    ends = np.arange(1, len(steps) + 1)
    starts = np.maximum(ends - width, 0)
    return dict(zip(steps, ((sums[ends] - sums[starts]) / (ends - starts)).tolist(), strict=True))


def shares(part: dict[int, float], whole: dict[int, float]) -> dict[int, float]:
    """Divides one curve by another at the updates where the other is not 0."""
    return {step: part[step] / whole[step] for step in part if whole.get(step)}


def smoothing_width(curves: Sequence[dict[int, float]]) -> int:
    """Returns a tenth of the longest curve's length, at least 1 (no smoothing)."""
    return max((len(curve) // 10 for curve in curves), default=1) or 1


def over_seeds(curves: Sequence[dict[int, float]], max_points: int = MAX_POINTS) -> dict[str, Any]:
    """Summarises one group's curves for a chart.

    Returns:
        x: updates done; mean, low, high: over the seeds that have a value there (low and high only if there are
        several seeds); n: the number of those seeds, if it is not the same at every x.
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
    """Rounds to eight significant digits, so that the page does not carry the tails of floats."""
    return float(f"{value:.8g}")


RAW, SMOOTH = "every update", "moving mean over a tenth of the run"

Curves = list[dict[int, float]]
"""One curve per run that measured the number: updates done -> value."""

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Caption, header and rows; the first cell of a row names it."""


@dataclass(frozen=True)
class Section:
    """A part of the page with charts and tables."""

    key: str
    title: str
    intro: str
    """How to read it."""
    empty: str
    """Shown instead if nothing was measured."""
    charts: list[dict[str, Any]]
    legend: list[str]
    """Long names, indexed by the `entry` of a series."""
    names: list[str]
    """Short names for tooltips and tables, indexed the same way."""
    styles: str = "groups"
    """How the script draws the entries: groups, kinds or phases."""
    folded: bool = False
    """Collapsed until the reader opens it."""
    tables: list[Table] = field(default_factory=list)
    """Shown below the charts."""


@dataclass(frozen=True)
class Spec:
    """One recorded number as a chart."""

    name: str
    title: str
    unit: str
    share: bool = False
    """The axis shows 0 to 1."""
    log: bool = False
    zero_is_absent: bool = False
    """Leave out runs whose every value is 0: they have no such term (a mean over nothing is recorded as 0)."""
    bound: str = ""
    """Another recorded number or a dotted configuration key, drawn as a horizontal line."""


def group_chart(spec: Spec, curves: Sequence[Curves], bounds: Sequence[float] = ()) -> dict[str, Any] | None:
    """Makes a chart with a line and a band per group; None if no group measured the number.

    There are two variants, plain and smoothed, if the longest run is long enough for them to differ. A bound is drawn
    only if it is the same in all groups.
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
    """Returns `over_seeds` of each group that has a curve; `entry` is the group's index."""
    return [{"entry": i} | over_seeds(of_group) for i, of_group in enumerate(curves) if of_group]


def spec_charts(specs: Sequence[Spec], groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Makes the charts of those numbers that at least one group measured."""
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
    """Returns the groups' labels with the seeds that a line averages."""
    return [f"{group.label}: {_seeds(group)}" for group in groups]


def _seeds(group: RunGroup) -> str:
    recorded = [seed for seed, run in zip(group.seeds, group.runs, strict=True) if run.metrics or run.evaluations]
    missing = len(group.runs) - len(recorded)
    seeds = ", ".join(map(str, recorded))
    if not recorded:
        return "nothing recorded yet"
    text = f"seed {seeds}" if len(recorded) == 1 else f"mean of seeds {seeds}; band: lowest to highest"
    return f"{text}; {missing} more without records" if missing else text
