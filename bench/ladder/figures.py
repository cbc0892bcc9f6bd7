"""The ladder's curves, of learning and of what was trained on, with bands over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.ladder.tables import trained_curves
from expo_ray.reporting.charts import over_seeds
from expo_ray.reporting.curves import COLOURS, STYLES
from expo_ray.reporting.groups import RunGroup

MARKERS = ("o", "s", "^", "D", "v", "P")


def heldout_curves(group: RunGroup, level: str, k: int, base: dict[str, Any]) -> list[dict[int, float]]:
    """Returns one curve per run: updates done -> pass@k in percent on held-out problems; 0 is the base model."""
    start = {0: 100 * base["pass_at_k"][level][str(k)]}
    return [
        start | {line["steps_done"]: 100 * line["pass_at_k"][level][str(k)] for line in run.evaluations}
        for run in group.runs
    ]


@dataclass(frozen=True)
class CurveRow:
    """A row of panels."""

    title: str
    methods: Sequence[RunGroup]
    labels: Sequence[str]
    """One name for each method."""


def draw_curves(rows: Sequence[CurveRow], levels: Sequence[str], k: int, base: Any, path: Path) -> None:
    """Draws held-out pass@k over updates: a panel per level, bands over seeds, and a legend for each row."""
    named = {"all levels" if level == "all" else f"level {level}": level for level in levels}
    axes = _panels(rows, named, lambda group, level: heldout_curves(group, level, k, base), 2.2, "update")
    for row in axes:
        for axis, level in zip(row, levels, strict=True):
            axis.axhline(
                100 * base["pass_at_k"][level][str(base["samples"])],
                color="0.4",
                linestyle=":",
                label=f"base, pass@{base['samples']}",
            )
            axis.set_ylim(-3, 103)
        row[0].set_ylabel(f"held-out pass@{k}, percent")
    _save(axes, path)


def draw_trained(rows: Sequence[CurveRow], metrics: Mapping[str, str], path: Path) -> None:
    """Draws metrics over steps: a panel for each, named by its key; bands over seeds, and a legend for each row."""
    _save(_panels(rows, metrics, trained_curves, 2.9, "step"), path)


def _panels(
    rows: Sequence[CurveRow],
    columns: Mapping[str, str],
    curves_of: Callable[[RunGroup, str], list[dict[int, float]]],
    width: float,
    x: str,
) -> Any:
    """The axes of a grid: a row of panels for each of `rows`, with a column for each of `columns` (title: what)."""
    # A row without a value has no range of its own.
    _, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(width * len(columns) + 1.8, 2.4 * len(rows) + 0.3),
        squeeze=False,
        sharex=True,
        sharey="col",
    )
    for row, of_row in zip(axes, rows, strict=True):
        for axis, (title, what) in zip(row, columns.items(), strict=True):
            for index, (group, label) in enumerate(zip(of_row.methods, of_row.labels, strict=True)):
                _curve(axis, curves_of(group, what), index, label)
            axis.set(title=f"{title}\n{of_row.title}", xlabel=x)
            axis.title.set_fontsize(9)
            axis.tick_params(labelbottom=True)
            axis.grid(alpha=0.3)
    return axes


def _save(axes: Any, path: Path) -> None:
    """Saves the figure, with a legend beside each row of panels."""
    for row in axes:
        row[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    figure = axes[0][0].figure
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(axis: Axes, curves: Sequence[dict[int, float]], index: int, name: str) -> None:
    colour, style, marker = (of[index % len(of)] for of in (COLOURS, STYLES, MARKERS))
    found = over_seeds(curves)
    axis.plot(found["x"], found["mean"], linestyle=style, marker=marker, markersize=4, color=colour, label=name)
    if "low" in found:
        axis.fill_between(found["x"], found["low"], found["high"], color=colour, alpha=0.18, linewidth=0)
