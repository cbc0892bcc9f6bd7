"""Learning curves of one or more runs as a PNG."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from omegaconf import OmegaConf

from expo_ray.reporting.runs import RunFolder

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: told apart by colour-blind readers too."""
STYLES = ("-", "--", "-.", ":")


def draw_curves(runs: Sequence[RunFolder], path: Path) -> None:
    """Draws pass rate by level, reward, explanations and step time over steps.

    A line is a run; runs of the same algorithm are told apart by their seeds. Training values are moving means over
    about a tenth of the run; dots are evaluations on held-out problems.
    """
    levels = sorted({name for run in runs for line in run.metrics for name in line if _is_level(name)})
    panels = [*levels, "reward/mean", "explanations", "time"]
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
    if panel == "explanations":
        axis.set(title="right self-explanations", ylabel="share of those sampled", ylim=(-0.03, 1.03))
        steps, correct = run.series("explanations/correct")
        sampled = dict(zip(*run.series("explanations/sampled"), strict=True))
        shares = [c / sampled[s] if sampled.get(s) else np.nan for s, c in zip(steps, correct, strict=True)]
        axis.plot(steps, _smooth(shares), style, color=colour, label=name)
    elif panel == "time":
        axis.set(title="time of a step", ylabel="seconds")
        steps, seconds = run.series("time/step")
        axis.plot(steps, _smooth(seconds), style, color=colour, label=name)
    elif panel == "reward/mean":
        axis.set(title="mean reward, all levels", ylabel="reward", ylim=(-0.03, 1.03))
        steps, values = run.series(panel)
        axis.plot(steps, _smooth(values), style, color=colour, label=name)
    else:
        level = panel.rsplit("_", 1)[-1]
        axis.set(title=f"level {level}", ylabel="pass rate", ylim=(-0.03, 1.03))
        steps, values = run.series(panel)
        axis.plot(steps, _smooth(values), style, color=colour, label=name)
        evaluations = [(e["steps_done"], e["pass_at_k"].get(level, {})) for e in run.evaluations]
        held = [(done, values["1"]) for done, values in evaluations if "1" in values]
        axis.plot([h[0] for h in held], [h[1] for h in held], "o", color=colour, markersize=5)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """The mean of each value and those before it, about a tenth of all; NaN where none of them was measured."""
    width = max(1, len(values) // 10)
    array = np.asarray(values, np.float64)
    known = ~np.isnan(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    ends = np.arange(1, len(array) + 1)
    starts = np.maximum(ends - width, 0)
    number = counts[ends] - counts[starts]
    return np.where(number > 0, (sums[ends] - sums[starts]) / np.maximum(number, 1), np.nan)


def _is_level(name: str) -> bool:
    return name.startswith("pass_rate/level_")
