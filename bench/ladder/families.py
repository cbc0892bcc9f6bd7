"""`python -m bench.ladder.families FOLDER`: what `bench.ladder.run` has finished so far, as a page."""

import json
import math
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.ladder.methods import ANSWER, FAMILIES, METHODS, RATES, SEARCH_SEED, Method
from bench.ladder.run import best_rate, finished_jobs, search_results
from bench.ladder.tables import Setting, check_comparable, collect, updates_made, updates_table
from expo_ray.config.errors import DataError, InputError
from expo_ray.files import write_whole
from expo_ray.reporting.groups import RunGroup
from expo_ray.reporting.runs import RunFolder
from expo_ray.sweep.ledger import FILE as SWEEP_FILE

Row = tuple[Method, RunGroup]
T_95 = {
    2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262, 12: 2.201, 15: 2.145,
    20: 2.093, 30: 2.045, 60: 2.001, 120: 1.98,
}  # fmt: skip
"""Student's t for 95 %, two-sided, by the number of seeds; between two numbers the smaller one's, which is larger."""
INTRO = (
    "Every method got the same prompts, {steps} updates of {prompts} prompts with {completions} completions each, and "
    "a learning rate from the same search: {rates}, one run each on all levels with seed {seed}, which is not among "
    "the compared ones; the rate with the highest pass@{k} over all levels, of equal ones the smallest. What a method "
    "samples besides its completions (explanations, hints, guided completions) comes on top: `sampled` has a run's "
    "thousands of tokens. `updates` counts steps that had something to train on. Cells: pass@{k} on held-out problems "
    "in percent, mean over seeds and its 95 % interval (Student's t), cut at 0 and 100. Each seed draws its own "
    "problems; the base was evaluated on those of seed 0."
)
WORDS = "## What was found"
"""The title of the page's section that people write."""
TRAINED = (
    "What the updates made likelier (at most 64 texts of a measured step), a mean over seeds at the first and the last "
    "measured step. *Leaks*: share that mentions having been told the answer, over all measured steps. *Property 1*: "
    "log-probability a token under the policy; *base*: the same under the base policy. *Property 2*: nats by which the "
    "text raises the log-probability of the gold answer. *Follows*: explanations of a wrong answer, asked for in every "
    "run and trained on in none, that end in it. A dash: nothing was made likelier there."
)
FIGURES = {
    "property 1": "trained/mean_logprob",
    "base": "trained/base_logprob",
    "property 2": "trained/answer_rise",
    "follows": "contrast/follows",
}
"""Columns of the table of what was trained on, with the metric of each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 for wrong input. The last line printed is the page's path."""
    parser = ArgumentParser(prog="python -m bench.ladder.families", description=__doc__)
    parser.add_argument("folder", type=Path, help="that of bench.ladder.run")
    parser.add_argument("--page", type=Path, help="default: FOLDER/families.md; the figure goes to the same folder")
    given = parser.parse_args(arguments)
    try:
        print(write_page(given.folder, (given.page or given.folder / "families.md").absolute()))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def write_page(folder: Path, page: Path) -> Path:
    """Writes the page, with its figure beside it.

    Raises:
        DataError: no method has a finished run yet, the base was not evaluated, or runs cannot be compared.
    """
    from bench.ladder.figures import CurveRow, draw_curves
    from bench.ladder.page import read_base

    base, rows = read_base(folder / "base"), finished(folder)
    settings = {levels for of in rows.values() for levels in of}
    if not settings:
        raise DataError(f"{folder}: no method has a finished run yet; run python -m bench.ladder.run {folder}")
    run = next(iter(next(iter(rows.values())).values()))[0][1].runs[0]
    k, levels = run.summary["evaluation"]["samples"], sorted(run.summary["evaluation"]["pass_at_k"])
    config = run.config
    parts = [
        "# The ladder of methods, in families",
        "Made by `make ladder` on the toy task ([toy_task.md](../toy_task.md)).",
    ]
    parts += [
        INTRO.format(
            steps=config.trainer.steps,
            prompts=config.trainer.prompts_per_step,
            completions=config.rollout.samples_per_prompt,
            rates=", ".join(f"{rate:g}" for rate in RATES),
            seed=SEARCH_SEED,
            k=k,
        ),
        _cost(folder),
    ]
    parts += [kept_words(page)]
    drawn: list[CurveRow] = []
    for chosen in sorted(settings, reverse=True):
        of_setting = {family: of[chosen] for family, of in rows.items() if chosen in of}
        everything = [row for family in FAMILIES for row in of_setting.get(family, [])]
        setting = Setting(chosen, [group for _, group in everything])
        hardest = max(level for level in levels if level != "all")
        parts += [f"## {setting.title.capitalize()}", *findings(everything, setting.title, hardest, k)]
        for family, of_family in of_setting.items():
            parts += [f"### {family.capitalize()}", family_table(of_family, levels, k, base, folder)]
            names = [method.label for method, _ in of_family]
            drawn.append(CurveRow(f"{setting.title},\n{family}", [group for _, group in of_family], names))
        names = [method.label for method, _ in everything]
        parts += [f"Level {hardest} by number of updates:", updates_table(setting, names, hardest, k)]
        parts += [TRAINED, trained_table(everything)]
    figure = page.with_name(f"{page.stem}_curves.png")
    page.parent.mkdir(parents=True, exist_ok=True)
    draw_curves(drawn, levels, k, base, figure)
    parts += ["## Learning curves", f"![pass@{k} over updates, by level, setting and family]({figure.name})"]
    parts += ["## The search of the learning rate", search_table(folder)]
    write_whole(page, "\n\n".join(part for part in parts if part) + "\n")
    return page


def kept_words(page: Path) -> str:
    """The section that people wrote into the page, which is kept when the rest is written again."""
    _, title, after = (page.read_text() if page.exists() else "").partition(f"{WORDS}\n")
    section, _, _ = after.partition("\n## ")
    return f"{title}{section}".rstrip()


def finished(folder: Path) -> dict[str, dict[tuple[int, ...], list[Row]]]:
    """Family -> levels trained on -> the methods with finished runs, in the order of METHODS.

    Raises:
        DataError: runs of one method or of several cannot be compared.
    """
    found: dict[str, dict[tuple[int, ...], list[Row]]] = {}
    runs: list[RunFolder] = []
    for method in METHODS:
        where = folder / "runs" / method.name
        if not finished_jobs(where):
            if where.is_dir():
                print(f"{method.label}: no finished run yet", file=sys.stderr)
            continue
        collection = collect(where)
        for setting in collection.settings:
            if len(setting.methods) != 1:
                names = ", ".join(group.label for group in setting.methods)
                raise DataError(f"{where}: runs with different settings ({names}): give each its own folder")
            found.setdefault(method.family, {}).setdefault(setting.levels, []).append((method, setting.methods[0]))
            runs += setting.methods[0].runs
    check_comparable(runs, folder / "runs")
    return {family: found[family] for family in FAMILIES if family in found}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of shares and its 95 % interval, cut at 0 and 1; with one value the interval is the value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, mean, mean
    reach = T_95[max(seeds for seeds in T_95 if seeds <= n)] * statistics.stdev(values) / math.sqrt(n)
    return mean, max(0.0, mean - reach), min(1.0, mean + reach)


def cell(values: Sequence[float]) -> str:
    """Such as "45.8 (0.0 to 100.0)", in percent."""
    mean, low, high = (100 * value for value in interval(values))
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ({low:.1f} to {high:.1f})"


def values_of(group: RunGroup, level: str, k: int) -> list[float]:
    """The final policies' pass@k on one level, a value a seed."""
    return [float(run.summary["evaluation"]["pass_at_k"][level][str(k)]) for run in group.runs]


def sampled_tokens(group: RunGroup) -> float:
    """Mean over seeds of all tokens that a run sampled to train on."""
    names = ("tokens/generated", "ahead/tokens/generated")
    return statistics.fmean(sum(line.get(name, 0.0) for line in run.metrics for name in names) for run in group.runs)


def family_table(rows: Sequence[Row], levels: Sequence[str], k: int, base: dict[str, Any], folder: Path) -> str:
    """A table of one family's methods below the base model."""
    heads = ["all" if level == "all" else f"L{level}" for level in levels]
    lines = [f"| method | rate | seeds | updates | sampled | {' | '.join(heads)} |", "|---" * (5 + len(heads)) + "|"]
    for most in sorted({base["samples"], k}, reverse=True):
        cells = [f"{100 * base['pass_at_k'][level][str(most)]:.1f}" for level in levels]
        lines.append(f"| base, pass@{most} | | | 0 | 0 | {' | '.join(cells)} |")
    for method, group in rows:
        cells = [cell(values_of(group, level, k)) for level in levels]
        rate = float(group.runs[0].config.learner.learning_rate)
        lines.append(
            f"| {method.label} | {rate:g} | {len(group.runs)} | {updates_made(group):.0f} | "
            f"{sampled_tokens(group) / 1000:.0f} k | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def trained_table(rows: Sequence[Row]) -> str:
    """What each method made likelier: leaks, both properties, the likelihood under the base, and the contrast."""
    lines = ["| method | texts | leaks | " + " | ".join(FIGURES) + " |", "|---" * (3 + len(FIGURES)) + "|"]
    for method, group in rows:
        texts = [line.get("trained/texts", 0.0) for run in group.runs for line in run.metrics]
        leaks = [line["trained/leaked"] for run in group.runs for line in run.metrics if "trained/leaked" in line]
        shown = [str(round(sum(texts))), f"{100 * statistics.fmean(leaks):.1f} %" if leaks else "-"]
        lines.append(f"| {method.label} | {' | '.join([*shown, *(_first_last(group, n) for n in FIGURES.values())])} |")
    return "\n".join(lines)


def _first_last(group: RunGroup, name: str) -> str:
    """Such as "-0.50 to -0.31": means over the runs, at the first and the last step where any of them measured it."""
    found: dict[int, list[float]] = {}
    for run in group.runs:
        for line in run.metrics:
            if name in line:
                found.setdefault(line["step"], []).append(line[name])
    ends = [f"{statistics.fmean(found[step]):.2f}" for step in (min(found), max(found))] if found else ["-"]
    return " to ".join(dict.fromkeys(ends))


def findings(rows: Sequence[Row], title: str, hardest: str, k: int) -> list[str]:
    """Says in words which method is ahead on the hardest level and over all, and where ExP-GRPO stands."""
    said = []
    for level, where in ((hardest, f"level {hardest}"), ("all", "all levels together")):
        means = {method.label: statistics.fmean(values_of(group, level, k)) for method, group in rows}
        best = max(means.values())
        first = [label for label, mean in means.items() if mean == best]
        sentence = f"{title.capitalize()}, pass@{k} on {where}: highest is {' and '.join(first)} with {100 * best:.1f}."
        own = means.get("ExP-GRPO")
        if own is not None:
            ahead = sorted((label for label, mean in means.items() if mean > own), key=lambda label: -means[label])
            shown = ", ".join(f"{label} ({100 * means[label]:.1f})" for label in ahead)
            sentence += f" ExP-GRPO has {100 * own:.1f}" + (f", behind {shown}." if ahead else ", behind none.")
        said.append(sentence)
    answer_only = [label.label for label, _ in rows if label.family == ANSWER]
    return [*said, f"Methods so far that learn from the answer alone: {', '.join(answer_only) or 'none'}."]


def search_table(folder: Path) -> str:
    """pass@k over all levels by method and learning rate; the chosen one in bold."""
    lines = ["| method | " + " | ".join(f"{rate:g}" for rate in RATES) + " |", "|---" * (1 + len(RATES)) + "|"]
    for method in METHODS:
        found = search_results(folder, method)
        if found:
            shown = {rate: f"{100 * value:.1f}" for rate, value in found.items()}
            if len(found) == len(RATES):
                shown[best_rate(found)] = f"**{shown[best_rate(found)]}**"
            lines.append(f"| {method.label} | " + " | ".join(shown.get(rate, "") for rate in RATES) + " |")
    return "\n".join(lines)


def _cost(folder: Path) -> str:
    """Time of the sweeps so far, over all calls."""
    jobs, seconds = 0, 0.0
    for file in folder.glob(f"**/{SWEEP_FILE}"):
        content = json.loads(file.read_text())
        jobs += len(content["jobs"])
        seconds += content["seconds"] + content["seconds_before"]
    return f"{jobs} jobs so far took {seconds / 3600:.1f} hours, actor start-up included." if jobs else ""


if __name__ == "__main__":
    sys.exit(main())
