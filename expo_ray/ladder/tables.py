"""The ladder's numbers: pass@k by level, mean and standard deviation over seeds, and what follows from them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expo_ray.ladder.collect import Collection, Setting, levels_of
from expo_ray.reporting.groups import RunGroup


@dataclass(frozen=True)
class Cell:
    """One number over seeds."""

    mean: float
    spread: float | None
    """Sample standard deviation (n - 1); None with one seed."""

    def percent(self) -> str:
        """In percent, such as "98.3 ± 1.4"."""
        spread = "" if self.spread is None else f" ± {100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


def pass_cell(group: RunGroup, level: str, k: int) -> Cell:
    """pass@k on held-out problems of one level, of the final policies of a method's runs."""
    return _cell([run.summary["evaluation"]["pass_at_k"][level][str(k)] for run in group.runs])


def _cell(values: list[float]) -> Cell:
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def updates_made(group: RunGroup) -> float:
    """Mean over seeds of the steps that changed the weights; a step without a training sample does not."""
    return statistics.fmean(sum("loss/total" in line for line in run.metrics) for run in group.runs)


def setting_table(setting: Setting, labels: Sequence[str], levels: list[str], k: int, base: dict[str, Any]) -> str:
    """The paper's table in Markdown: the base at its largest k and at k, then each method at k, in percent.

    Args:
        setting: its methods are the rows.
        labels: a name for each method.
        levels: the columns, as in the evaluations.
        k: of pass@k.
        base: evaluation.json of the base model.
    """
    lines = [
        "| policy | seeds | updates | "
        + " | ".join("all" if level == "all" else f"L{level}" for level in levels)
        + " |",
        "|---|---|---|" + "---|" * len(levels),
    ]
    for largest in sorted({base["samples"], k}, reverse=True):
        cells = [f"{100 * base['pass_at_k'][level][str(largest)]:.1f}" for level in levels]
        lines.append(f"| base, pass@{largest} | | 0 | " + " | ".join(cells) + " |")
    for group, label in zip(setting.methods, labels, strict=True):
        cells = [pass_cell(group, level, k).percent() for level in levels]
        lines.append(f"| {label} | {len(group.runs)} | {updates_made(group):.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def updates_table(setting: Setting, labels: Sequence[str], level: str, k: int) -> str:
    """pass@k on one level after each evaluated number of updates, in percent: who is ahead at equal numbers of them."""
    curves = [
        [{line["steps_done"]: line["pass_at_k"][level][str(k)] for line in run.evaluations} for run in group.runs]
        for group in setting.methods
    ]
    counts = sorted({count for of_group in curves for of_run in of_group for count in of_run if count})
    lines = ["| policy | " + " | ".join(f"after {count}" for count in counts) + " |", "|---|" + "---|" * len(counts)]
    for label, of_group in zip(labels, curves, strict=True):
        found = [[of_run[count] for of_run in of_group if count in of_run] for count in counts]
        lines.append(f"| {label} | " + " | ".join(_cell(values).percent() if values else "" for values in found) + " |")
    return "\n".join(lines)


# arXiv 2507.02834: GRPO < GRPO SFT-GT-CoT < ExP-GRPO at every level but one, and by far on the hardest.
PAPERS_ORDER = ("grpo", "sft_gt_grpo", "exp_grpo")


def findings(collection: Collection) -> list[str]:
    """Sentences on the paper's claim: ExP-GRPO against its two rivals at each level, with what contradicts it."""
    sentences = []
    levels = levels_of(collection)
    for setting in collection.settings:
        by_name = {group.runs[0].config.algo.name: group for group in setting.methods}
        if any(name not in by_name for name in PAPERS_ORDER):
            continue
        k, hardest = collection.samples, max(level for level in levels if level != "all")
        grpo, gold, exp = (pass_cell(by_name[name], hardest, k).mean for name in PAPERS_ORDER)
        sentences.append(
            f"{setting.title.capitalize()}, pass@{k} on level {hardest}: ExP-GRPO {100 * exp:.1f}, "
            f"{100 * (exp - grpo):+.1f} points against GRPO and {100 * (exp - gold):+.1f} against SFT-GT-CoT."
        )
        sentences += _against_the_paper(setting, by_name, levels, k)
    return sentences


def _against_the_paper(setting: Setting, by_name: dict[str, RunGroup], levels: list[str], k: int) -> list[str]:
    worse = []
    for level in levels:
        means = [pass_cell(by_name[name], level, k).mean for name in PAPERS_ORDER]
        for lower, mean in zip(("GRPO", "SFT-GT-CoT"), means[:2], strict=True):
            if mean > means[2]:
                worse.append(f"{lower} {100 * mean:.1f} against {100 * means[2]:.1f} ({_level(level)})")
    if not worse:
        return []
    return [f"**Against the paper**, {setting.title}: ExP-GRPO is behind {'; '.join(worse)}."]


def _level(level: str) -> str:
    return "all levels" if level == "all" else f"level {level}"
