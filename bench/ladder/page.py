"""The ladder's page in Markdown: what was run, what came out, and what contradicts the paper."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bench.ladder.figures import CurveRow, draw_curves
from bench.ladder.likelihood import draw_likelihoods, likelihood_table
from bench.ladder.tables import (
    Collection,
    collect,
    findings,
    labels_by_change,
    levels_of,
    most_common,
    setting_table,
    updates_table,
)
from expo_ray.config.errors import DataError
from expo_ray.files import write_whole
from expo_ray.reporting.groups import ABSENT, differences
from expo_ray.reporting.likelihood import read_likelihoods, sentence
from expo_ray.sweep.ledger import FILE as SWEEP_FILE

ABLATIONS = "## Ablations"
OWN = ("data.levels", "rollout.explanations_per_prompt")
"""Settings that define a training setting or a method, so they differ by design."""


@dataclass(frozen=True)
class Sources:
    """Folders of the ladder."""

    runs: Path
    base: Path
    """The folder of `expo_ray.evaluate` on the base model."""
    likelihood: Path | None
    """A run of one step that measured the properties of all its samples; None: left out."""
    ablations: Path | None
    """Sweeps over settings of one algorithm; None: left out."""
    commit: str | None = None
    """That the ablations ran at, if the page should say so."""


def write_page(sources: Sources, page: Path) -> list[Path]:
    """Writes the page, and its figures to the same folder.

    Returns:
        All files written, the page first.

    Raises:
        DataError: a folder lacks an expected file, or its runs cannot be compared.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    base = read_base(sources.base)
    apart = [path for path in (sources.base, sources.likelihood, sources.ablations) if path is not None]
    ladder = collect(sources.runs, apart)
    k, levels = ladder.samples, levels_of(ladder)
    _same_world(base, ladder, k)
    hardest = max(level for level in levels if level != "all")
    labels = [[group.label for group in setting.methods] for setting in ladder.settings]
    curves = page.with_name(f"{page.stem}_curves.png")
    rows = [CurveRow(s.title, s.methods, names) for s, names in zip(ladder.settings, labels, strict=True)]
    draw_curves(rows, levels, k, base, curves)
    written = [page, curves]
    said = findings(ladder)
    parts = [_head(sources, ladder), *(["## What came out"] if said else []), *said]
    for setting, names in zip(ladder.settings, labels, strict=True):
        parts += [f"## {setting.title.capitalize()}", setting_table(setting, names, levels, k, base)]
        parts += [f"Level {hardest} by number of updates:", updates_table(setting, names, hardest, k)]
    parts += [
        "## Learning curves",
        f"pass@{k} on held-out problems; lines are means over seeds, bands reach from the lowest to the highest seed.",
        f"![pass@{k} over updates, by level and training setting]({curves.name})",
    ]
    if sources.likelihood is not None:
        found, figure = read_likelihoods([sources.likelihood]), page.with_name(f"{page.stem}_likelihood.png")
        draw_likelihoods(found, figure)
        written.append(figure)
        parts += [
            "## Likelihood of the three kinds of samples",
            f"Under the base policy, given the question only; {len(found.levels)} problems.",
            likelihood_table(found),
            sentence(found),
            f"![log-likelihood by kind and by level]({figure.name})",
        ]
    if sources.ablations is not None:
        parts += _ablations(sources.ablations, base, sources.commit)
    parts += _missing(ladder)
    write_whole(page, "\n\n".join(part for part in parts if part) + "\n")
    return written


def write_ablations(ablations: Path, base: Path, page: Path, commit: str | None) -> list[Path]:
    """Writes the page's section of ablations again, or adds it at the end, and leaves the rest as it is.

    Returns:
        The page.

    Raises:
        DataError: there is no such page, or see `write_page`.
    """
    if not page.exists():
        raise DataError(f"{page}: there is no such page; python -m bench.ladder FOLDER writes a whole one")
    before, title, after = page.read_text().partition(f"{ABLATIONS}\n")
    if not title:
        before = f"{before.rstrip()}\n\n"
    section = "\n\n".join(part for part in _ablations(ablations, read_base(base), commit, [base]) if part)
    _, following, rest = after.partition("\n## ")
    write_whole(page, f"{before}{section}\n{following}{rest}")
    return [page]


def read_base(folder: Path) -> dict[str, Any]:
    """Reads evaluation.json from a folder of `expo_ray.evaluate`.

    Raises:
        DataError: the file is missing or has no pass@k.
    """
    file = folder / "evaluation.json"
    if not file.exists():
        raise DataError(f"{folder}: no evaluation.json in it; evaluate the base model with run_dir={folder}")
    found = json.loads(file.read_text())
    if "pass_at_k" not in found or "samples" not in found:
        raise DataError(f"{file}: it has no pass_at_k; evaluate the base model again")
    return found


def _same_world(base: dict[str, Any], ladder: Collection, k: int) -> None:
    problems = ladder.settings[0].methods[0].runs[0].summary["evaluation"]["problems"]
    if base["problems"] != problems:
        raise DataError(
            f"the base was evaluated on other held-out problems ({base['problems']}) than the runs ({problems})"
        )
    if base["samples"] < k:
        raise DataError(f"the base has {base['samples']} samples per problem, the runs {k}: evaluate it with more")


def _head(sources: Sources, ladder: Collection) -> str:
    run = ladder.settings[0].methods[0].runs[0]
    config, problems = run.config, run.summary["evaluation"]["problems"]
    per_level = ", ".join(
        f"{count} ({'all' if level == 'all' else f'level {level}'})" for level, count in problems.items()
    )
    head = (
        f"Made by `python -m bench.ladder`. Every method got the same prompts and {config.trainer.steps} updates of "
        f"{config.trainer.prompts_per_step} prompts with {config.rollout.samples_per_prompt} completions each "
        f"(DPO skips prompts without a pair). Held-out problems: {per_level}; {ladder.samples} samples each at "
        f"temperature {config.eval.temperature:g}. Cells: mean over seeds ± standard deviation (n - 1), in percent."
    )
    if config.data.name == "toy":
        seed = OmegaConf.select(OmegaConf.load(sources.base / "config.yaml"), "seed")
        head += (
            f" The seed draws the problems, so each seed has its own; the base was evaluated on those of seed {seed}."
        )
    parts = [head, _unequal(ladder), _commands(sources.runs), _machine(run.path)]
    return "\n\n".join(["# The ladder of methods on the toy task", *(part for part in parts if part)])


def _unequal(ladder: Collection) -> str:
    """Lists the settings outside `algo` that are not the same for all methods."""
    groups = [group for setting in ladder.settings for group in setting.methods]
    said = []
    for key, values in differences([group.settings for group in groups]).items():
        # A key that some runs lack was added to the schema later; its default keeps the earlier behaviour.
        if key.startswith("algo.") or key in OWN or ABSENT in values:
            continue
        usual = most_common(values)
        own: dict[str, set[str]] = defaultdict(set)
        for group, value in zip(groups, values, strict=True):
            if value != usual:
                own[value].add(group.label)
        others = "; ".join(f"{value} for {', '.join(sorted(labels))}" for value, labels in own.items())
        said.append(f"`{key}` is {usual}, but {others}.")
    return " ".join(["**Not the same for all methods**:", *said]) if said else ""


def _commands(folder: Path) -> str:
    """Lists the sweeps' commands with their time over all calls, actor start-up included."""
    lines, total = [], 0.0
    for file in sorted(folder.glob(f"**/{SWEEP_FILE}")):
        content = json.loads(file.read_text())
        seconds = content["seconds"] + content["seconds_before"]
        total += seconds
        lines.append(f"    {content['command']}   # {len(content['jobs'])} job(s), {seconds / 60:.0f} min")
    if not lines:
        return ""
    return "\n".join(["The sweeps:", "", *lines, "", f"{total / 60:.0f} minutes in total, actor start-up included."])


def _machine(run: Path) -> str:
    """Names the machine, from the run's plan.txt."""
    file = run / "plan.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    found = [line.removeprefix("resources").strip() for line in lines if line.startswith("resources")]
    return f"Ran on: {found[0]}." if found else ""


def _ablations(folder: Path, base: dict[str, Any], commit: str | None, apart: Sequence[Path] = ()) -> Sequence[str]:
    found = collect(folder, apart)
    levels = levels_of(found)
    parts = [ABLATIONS, f"Ran at commit {commit}." if commit else "", _commands(folder)]
    for setting in found.settings:
        names = labels_by_change(setting.methods)
        name = setting.methods[0].runs[0].label
        parts += [f"{name}, {setting.title}; each row changes the named settings only."]
        parts += [setting_table(setting, names, levels, found.samples, base)]
        hardest = max(level for level in levels if level != "all")
        parts += [f"Level {hardest} by number of updates:", updates_table(setting, names, hardest, found.samples)]
    return [*parts, *_missing(found)]


def _missing(found: Collection) -> list[str]:
    if not found.left_out:
        return []
    return [f"Left out because not finished: {', '.join(f'`{path}`' for path in found.left_out)}."]
