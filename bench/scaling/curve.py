"""The curve from 8 to 512 GPUs: points, table and figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.scaling.gpus import PARTS, Point, limit, predict, recipe, split_in_half

GPUS = (8, 16, 32, 64, 128, 256, 512)
RECIPES = {"math_l5_qwen2.5_3b": "3B", "math_l5_qwen2.5_7b_lora": "7B LoRA"}
MODES = ("own batch", "growing batch", "growing batch, one step off")
# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
STYLES = {"3B": "-", "7B LoRA": "--"}
MARKERS = ("o", "s", "^")


@dataclass(frozen=True)
class Curve:
    """One line of the figure."""

    model: str
    mode: str
    points: tuple[Point, ...]

    def efficiency(self, point: Point) -> float:
        """Completions a GPU second, over those of the smallest cluster."""
        base = self.points[0]
        return (point.rate / point.cluster.gpus) / (base.rate / base.cluster.gpus)


def curves(lengths: Sequence[int] = ()) -> list[Curve]:
    """All curves. `own batch`: the recipe's prompts at any size; `growing batch`: as many a GPU as it has on 8.

    Args:
        lengths: measured lengths of completions to draw from, instead of the assumed distribution.
    """
    found = []
    for name, model in RECIPES.items():
        config, shape = recipe(name)
        own = config.trainer.prompts_per_step
        for mode in MODES:
            points = []
            for gpus in GPUS:
                prompts = own if mode == "own batch" else own * gpus // GPUS[0]
                steps_off = 1 if mode.endswith("off") else 0
                points.append(predict(config, shape, split_in_half(gpus, prompts), steps_off, lengths))
            found.append(Curve(model, mode, tuple(points)))
    return found


def table(found: Sequence[Curve]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [
        "| model | batch | GPUs | prompts a step | seconds a step | completions/s | efficiency | what limits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for curve in found:
        for point in curve.points:
            lines.append(
                f"| {curve.model} | {curve.mode} | {point.cluster.gpus} | {point.cluster.prompts} | "
                f"{point.seconds:.1f} | {point.rate:.0f} | {curve.efficiency(point):.0%} | {_limit(curve, point)} |"
            )
    return lines


def draw(found: Sequence[Curve], file: Path) -> None:
    """Draws completions a second over GPUs, and where a step's time goes with the recipe's own batch."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "scaling"  # the same picture is the same file
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for curve in found:
        number = MODES.index(curve.mode)
        left.plot(
            [point.cluster.gpus for point in curve.points],
            [point.rate for point in curve.points],
            STYLES[curve.model],
            marker=MARKERS[number],
            color=COLOURS[number],
            label=f"{curve.model}, {curve.mode}",
        )
    left.set(xscale="log", yscale="log", xlabel="GPUs (H100)", ylabel="free completions per second")
    left.set_title("Predicted throughput")
    right.set_title("A synchronous step, 3B, own batch")
    _stack(right, next(curve for curve in found if curve.model == "3B" and curve.mode == "own batch"))
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    left.set_xticks(GPUS, [str(gpus) for gpus in GPUS])
    left.minorticks_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _stack(axes: object, curve: Curve) -> None:
    below = [0.0] * len(curve.points)
    names = [str(point.cluster.gpus) for point in curve.points]
    for part, colour in zip(PARTS, COLOURS, strict=True):
        heights = [point.parts[part] for point in curve.points]
        axes.bar(names, heights, bottom=below, color=colour, label=part)  # type: ignore[attr-defined]
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set(xlabel="GPUs (H100)", ylabel="seconds per step")  # type: ignore[attr-defined]


def _limit(curve: Curve, point: Point) -> str:
    if point.async_steps:
        sampling = sum(point.parts[name] for name in PARTS[:3])
        return "engines" if sampling >= sum(point.parts[name] for name in PARTS[3:]) else "ranks"
    if point is curve.points[0]:
        return "(base)"
    name, share = limit(curve.points[0], point)
    return f"{name}, {share:.0%} of the step"
