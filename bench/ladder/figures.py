"""The ladder's learning curves, with bands over seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.ladder.tables import Setting
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


def draw_curves(
    settings: Sequence[Setting], labels: Sequence[Sequence[str]], levels: Sequence[str], k: int, base: Any, path: Path
) -> None:
    """Draws held-out pass@k over updates: a row per setting, a panel per level, bands over seeds."""
    figure, axes = plt.subplots(
        len(settings),
        len(levels),
        figsize=(2.3 * len(levels) + 0.6, 2.6 * len(settings) + 0.7),
        squeeze=False,
        sharey=True,
    )
    for row, (setting, names) in enumerate(zip(settings, labels, strict=True)):
        for column, level in enumerate(levels):
            axis = axes[row][column]
            for index, (group, name) in enumerate(zip(setting.methods, names, strict=True)):
                _curve(axis, heldout_curves(group, level, k, base), index, name)
            axis.axhline(
                100 * base["pass_at_k"][level][str(base["samples"])],
                color="0.4",
                linestyle=":",
                label=f"base, pass@{base['samples']}",
            )
            where = "all levels" if level == "all" else f"level {level}"
            axis.set(title=f"{where}\n{setting.title}", xlabel="update", ylim=(-3, 103))
            axis.title.set_fontsize(9)
            axis.grid(alpha=0.3)
        axes[row][0].set_ylabel(f"held-out pass@{k}, percent")
    # A method may be missing in one setting, so the legend is collected over all rows.
    named = {name: handle for row in axes for handle, name in zip(*row[0].get_legend_handles_labels(), strict=True)}
    names = list(named)
    figure.legend(list(named.values()), names, loc="lower center", ncol=min(4, len(names)), frameon=False, fontsize=9)
    lines = -(-len(names) // 4)
    figure.tight_layout(rect=(0, 0.3 * lines / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(axis: Axes, curves: Sequence[dict[int, float]], index: int, name: str) -> None:
    colour, style, marker = (of[index % len(of)] for of in (COLOURS, STYLES, MARKERS))
    found = over_seeds(curves)
    axis.plot(found["x"], found["mean"], linestyle=style, marker=marker, markersize=4, color=colour, label=name)
    if "low" in found:
        axis.fill_between(found["x"], found["low"], found["high"], color=colour, alpha=0.18, linewidth=0)
