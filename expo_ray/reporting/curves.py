"""Learning curves of one or more runs as a PNG."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from omegaconf import OmegaConf

from expo_ray.reporting.charts import moving_mean, shares, smoothing_width
from expo_ray.reporting.runs import RunFolder

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
STYLES = ("-", "--", "-.", ":")
LEVEL = "pass_rate/level_"


def draw_curves(runs: Sequence[RunFolder], path: Path) -> None:
    """Draws pass rate by level, reward, explanations and step time over steps, a line per run.

    The seed distinguishes runs of one algorithm. Training values are moving means over about a tenth of the run; dots
    are evaluations on held-out problems.
    """
    levels = sorted({name for run in runs for line in run.metrics for name in line if name.startswith(LEVEL)})
    panels = [*levels, "reward/mean", "explanations/correct", "time/step"]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.9 * rows), squeeze=False)
    names = _names(runs)
    for axis, panel in zip(axes.flat, panels, strict=False):
        for index, run in enumerate(runs):
            _panel(axis, panel, run, names[index], COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)])
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=min(6, max(1, len(labels))), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96 - 0.02 * (len(labels) // 6)))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _names(runs: Sequence[RunFolder]) -> list[str]:
    labels = [run.label for run in runs]
    seeds = [OmegaConf.select(run.config, "seed") for run in runs]
    return [
        f"{label}, seed {seed}" if labels.count(label) > 1 else label for label, seed in zip(labels, seeds, strict=True)
    ]


def _panel(axis: Axes, panel: str, run: RunFolder, name: str, colour: str, style: str) -> None:
    curve = run.curve(panel)
    if panel == "explanations/correct":
        axis.set(title="right self-explanations", ylabel="share of those sampled", ylim=(-0.03, 1.03))
        curve = shares(curve, run.curve("explanations/sampled"))
    elif panel == "time/step":
        axis.set(title="time of a step", ylabel="seconds")
    elif panel == "reward/mean":
        axis.set(title="mean reward, all levels", ylabel="reward", ylim=(-0.03, 1.03))
    else:
        level = panel.removeprefix(LEVEL)
        axis.set(title=f"level {level}", ylabel="pass rate", ylim=(-0.03, 1.03))
        scores = {line["steps_done"]: line["pass_at_k"].get(level, {}).get("1") for line in run.evaluations}
        held_out = {done: score for done, score in scores.items() if score is not None}
        axis.plot(list(held_out), list(held_out.values()), "o", color=colour, markersize=5)
    smooth = moving_mean(curve, smoothing_width([curve]))
    axis.plot(list(smooth), list(smooth.values()), style, color=colour, label=name)
