"""The ladder's numbers: what is finished and can be compared, pass@k by level with its spread over seeds, and costs."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from expo_ray.config.algorithms import ALGORITHMS
from expo_ray.config.errors import DataError
from expo_ray.reporting.groups import RunGroup, differences, group_runs
from expo_ray.reporting.runs import RunFolder, find_runs, read_run
from expo_ray.sweep.ledger import FILE as SWEEP_FILE

LADDER = tuple(ALGORITHMS)
"""Algorithms in the order of the tables."""


TERMS = ("algo.beta", "algo.kl_conditioned_coef")
"""The weights of what ExP-GRPO adds to GRPO."""


@dataclass(frozen=True)
class Setting:
    """Methods trained on the same problems."""

    levels: tuple[int, ...]
    """`data.levels`; empty: all."""
    methods: list[RunGroup]
    """In the order of LADDER."""

    @property
    def title(self) -> str:
        """Such as "trained on level 5"."""
        if not self.levels:
            return "trained on all levels"
        return f"trained on level{'s' * (len(self.levels) > 1)} {', '.join(map(str, self.levels))}"


@dataclass(frozen=True)
class Collection:
    """The runs of one folder."""

    settings: list[Setting]
    left_out: list[Path]
    """Runs that have not finished."""
    samples: int
    """`eval.samples`, the same in all runs."""


def collect(folder: Path, apart: Sequence[Path] = ()) -> Collection:
    """Reads the finished runs below `folder`, except those in the folders `apart`.

    Raises:
        DataError: there is no finished run; runs differ in their numbers of samples, problems or updates and cannot
            be compared; or one method has two runs with the same seed.
    """
    skipped = {path.resolve() for path in apart}
    paths = [path for path in find_runs([folder]) if not skipped & {path.resolve(), *path.resolve().parents}]
    runs = [read_run(path) for path in paths]
    finished = [run for run in runs if run.summary.get("finished") and run.summary.get("evaluation")]
    if not finished:
        raise DataError(f"{folder}: no finished run with an evaluation in it")
    check_comparable(finished, folder)
    by_levels: defaultdict[tuple[int, ...], list[RunFolder]] = defaultdict(list)
    for run in finished:
        by_levels[tuple(run.config.data.levels)].append(run)
    settings = [Setting(levels, _methods(of)) for levels, of in sorted(by_levels.items(), reverse=True)]
    left_out = [run.path for run in runs if run not in finished]
    return Collection(settings, left_out, finished[0].summary["evaluation"]["samples"])


def read_base(folder: Path) -> dict[str, Any]:
    """Reads evaluation.json from a folder of `expo_ray.evaluate`.

    Raises:
        DataError: the file is missing or has no pass@k.
    """
    file = folder / "evaluation.json"
    if not file.exists():
        raise DataError(f"{folder}: no evaluation.json in it; evaluate the base model with run_dir={folder}")
    found: dict[str, Any] = json.loads(file.read_text())
    if "pass_at_k" not in found or "samples" not in found:
        raise DataError(f"{file}: it has no pass_at_k; evaluate the base model again")
    return found


def check_base(base: dict[str, Any], run: RunFolder) -> None:
    """Raises DataError if the base model was evaluated on other held-out problems than `run`, or with fewer samples."""
    evaluation = run.summary["evaluation"]
    if base["problems"] != evaluation["problems"]:
        raise DataError(
            f"the base was evaluated on other held-out problems ({base['problems']}) than the runs "
            f"({evaluation['problems']})"
        )
    if base["samples"] < (k := evaluation["samples"]):
        raise DataError(f"the base has {base['samples']} samples per problem, the runs {k}: evaluate it with more")


def cost(folder: Path) -> list[str]:
    """The commands of the sweeps below `folder` with their time over all calls, and the machine that ran them."""
    lines, jobs, total = [], 0, 0.0
    files = sorted(folder.glob(f"**/{SWEEP_FILE}"))
    for file in files:
        content = json.loads(file.read_text())
        seconds = content["seconds"] + content["seconds_before"]
        jobs, total = jobs + len(content["jobs"]), total + seconds
        lines.append(f"    {content['command']}   # {len(content['jobs'])} jobs, {seconds / 60:.0f} min")
    if not files:
        return []
    plans = [line for file in files[0].parent.glob("*/plan.txt") for line in file.read_text().splitlines()]
    machines = [line.removeprefix("resources").strip() for line in plans if line.startswith("resources")]
    where = f" Each ran on {machines[0]}." if machines else ""
    return ["\n".join(lines), f"{jobs} jobs, {total / 3600:.1f} hours, actor start-up included.{where}"]


def labels_by_change(groups: Sequence[RunGroup]) -> list[str]:
    """Names each group by the settings in which it differs from most groups; "unchanged" if it does not.

    Without the SFT term and the KL on conditioned prompts, ExP-GRPO is plain GRPO.
    """
    changed = differences([group.settings for group in groups])
    usual = {key: most_common(values) for key, values in changed.items()}
    found = []
    for i, _ in enumerate(groups):
        own = [f"{key} = {values[i]}" for key, values in changed.items() if values[i] != usual[key]]
        weights = {changed[key][i] for key in TERMS if key in changed}
        plain = "plain GRPO: " if weights == {"0.0"} and len(own) == len(TERMS) else ""
        found.append(plain + ", ".join(own) or "unchanged")
    return found


def most_common(values: Sequence[str]) -> str:
    """Returns the most frequent value, the first one of several equally frequent ones."""
    return Counter(values).most_common(1)[0][0]


def levels_of(collection: Collection) -> list[str]:
    """Returns the levels of the held-out problems, then "all"."""
    run = collection.settings[0].methods[0].runs[0]
    levels = [level for level in run.summary["evaluation"]["pass_at_k"] if level != "all"]
    return [*sorted(levels), "all"]


def _methods(runs: list[RunFolder]) -> list[RunGroup]:
    groups = sorted(group_runs(runs), key=lambda group: LADDER.index(group.runs[0].config.algo.name))
    for group in groups:
        seeds = Counter(group.seeds)
        if twice := [seed for seed, count in seeds.items() if count > 1]:
            where = ", ".join(str(run.path) for run in group.runs)
            raise DataError(f"{group.label}: seed {twice[0]} is there twice ({where}): remove one of them")
    return groups


def check_comparable(runs: Sequence[RunFolder], folder: Path) -> None:
    """Raises DataError if the runs differ in their numbers of samples, problems or updates, or in the like."""
    for name, value in _MUST_AGREE.items():
        found: dict[str, Path] = {}
        for run in runs:
            found.setdefault(str(value(run)), run.path)
        if len(found) > 1:
            (one, where), (other, there) = list(found.items())[:2]
            raise DataError(f"{folder}: runs differ in {name}: {one} in {where}, {other} in {there}")


def _setting(key: str) -> Any:
    return lambda run: OmegaConf.select(run.config, key)


_MUST_AGREE = {
    "samples per held-out problem": lambda run: run.summary["evaluation"]["samples"],
    "held-out problems": lambda run: run.summary["evaluation"]["problems"],
    "trainer.steps": _setting("trainer.steps"),
    "trainer.prompts_per_step": _setting("trainer.prompts_per_step"),
    "rollout.samples_per_prompt": _setting("rollout.samples_per_prompt"),
    "model.path": _setting("model.path"),
    "eval.temperature": _setting("eval.temperature"),
}


@dataclass(frozen=True)
class Cell:
    """One number over seeds."""

    mean: float
    spread: float | None
    """Sample standard deviation (n - 1); None with one seed."""

    def percent(self) -> str:
        """Formats the cell in percent, such as "98.3 ± 1.4"."""
        spread = "" if self.spread is None else f" ± {100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


def pass_cell(group: RunGroup, level: str, k: int) -> Cell:
    """Returns the final policies' pass@k on held-out problems of one level, over a method's runs."""
    return _cell([run.summary["evaluation"]["pass_at_k"][level][str(k)] for run in group.runs])


def _cell(values: list[float]) -> Cell:
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def updates_made(group: RunGroup) -> float:
    """Returns the mean over seeds of the steps with a gradient: without a training sample, or with advantages that are
    all 0, there is none."""
    return statistics.fmean(
        sum(line.get("update/gradient_norm", 0.0) > 0 for line in run.metrics) for run in group.runs
    )


def setting_table(setting: Setting, labels: Sequence[str], levels: list[str], k: int, base: dict[str, Any]) -> str:
    """Formats the paper's table in Markdown: the base at its largest k and at k, then each method at k, in percent.

    Args:
        setting: its methods are the rows.
        labels: one name per method.
        levels: the columns, as in the evaluations.
        k: the k of pass@k.
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


def trained_curves(group: RunGroup, metric: str) -> list[dict[int, float]]:
    """One curve per run: step -> the metric, where it was measured."""
    return [{line["step"]: line[metric] for line in run.metrics if metric in line} for run in group.runs]


def updates_table(setting: Setting, labels: Sequence[str], level: str, k: int) -> str:
    """Formats pass@k on one level after each evaluated number of updates, in percent."""
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
