"""Puts the runs below a folder into training settings and methods; each method has one run a seed."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from expo_ray.config.errors import DataError
from expo_ray.reporting.groups import RunGroup, differences, group_runs
from expo_ray.reporting.runs import RunFolder, find_runs, read_run

LADDER = ("grpo", "sft_gt_grpo", "exp_grpo", "explanation_sft", "dpo_gt", "exp_dpo")
"""Algorithms in the order of the tables: the paper's, each with its baseline before it."""


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
    """Reads the finished runs below `folder`, but for those in the folders `apart`.

    Raises:
        DataError: no finished run; runs with different numbers of samples, problems or updates, which cannot be
            compared; two runs of one method and seed.
    """
    skipped = {path.resolve() for path in apart}
    paths = [path for path in find_runs([folder]) if not skipped & {path.resolve(), *path.resolve().parents}]
    runs = [read_run(path) for path in paths]
    finished = [run for run in runs if run.summary.get("finished") and run.summary.get("evaluation")]
    if not finished:
        raise DataError(f"{folder}: no finished run with an evaluation in it")
    _comparable(finished, folder)
    by_levels: defaultdict[tuple[int, ...], list[RunFolder]] = defaultdict(list)
    for run in finished:
        by_levels[tuple(run.config.data.levels)].append(run)
    settings = [Setting(levels, _methods(of)) for levels, of in sorted(by_levels.items(), reverse=True)]
    left_out = [run.path for run in runs if run not in finished]
    return Collection(settings, left_out, finished[0].summary["evaluation"]["samples"])


def labels_by_change(groups: Sequence[RunGroup]) -> list[str]:
    """Each group by the settings in which it departs from what most groups have; "unchanged" where it does not."""
    changed = differences([group.settings for group in groups])
    usual = {key: most_common(values) for key, values in changed.items()}
    found = []
    for i, _ in enumerate(groups):
        own = [f"{key} = {values[i]}" for key, values in changed.items() if values[i] != usual[key]]
        found.append(", ".join(own) or "unchanged")
    return found


def most_common(values: Sequence[str]) -> str:
    """The value that most have; the first of them where several are as common."""
    return Counter(values).most_common(1)[0][0]


def levels_of(collection: Collection) -> list[str]:
    """The levels of the held-out problems, then "all"."""
    run = collection.settings[0].methods[0].runs[0]
    levels = [level for level in run.summary["evaluation"]["pass_at_k"] if level != "all"]
    return [*sorted(levels), "all"]


def _methods(runs: list[RunFolder]) -> list[RunGroup]:
    groups = sorted(group_runs(runs), key=lambda group: LADDER.index(group.runs[0].config.algo.name))
    for group in groups:
        seeds = Counter(group.seeds)
        if twice := [seed for seed, count in seeds.items() if count > 1]:
            where = ", ".join(str(run.path) for run in group.runs)
            raise DataError(f"{group.label}: seed {twice[0]} is there twice ({where}): take one of them away")
    return groups


def _comparable(runs: list[RunFolder], folder: Path) -> None:
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
    "samples of a held-out problem": lambda run: run.summary["evaluation"]["samples"],
    "held-out problems": lambda run: run.summary["evaluation"]["problems"],
    "trainer.steps": _setting("trainer.steps"),
    "trainer.prompts_per_step": _setting("trainer.prompts_per_step"),
    "rollout.samples_per_prompt": _setting("rollout.samples_per_prompt"),
    "model.path": _setting("model.path"),
    "eval.temperature": _setting("eval.temperature"),
}
