"""`python -m bench.ladder.page FOLDER`: what `bench.ladder.run` has finished so far, as a page."""

import math
import statistics
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.ladder.methods import ANSWER, COMPARISONS, FAMILIES, METHODS, Comparison, Method
from bench.ladder.run import chosen_rate, finished_jobs, runs_folder, search_results
from bench.ladder.tables import (
    Setting,
    check_base,
    check_comparable,
    collect,
    cost,
    read_base,
    trained_curves,
    updates_made,
    updates_table,
)
from expo_ray.config.errors import DataError, InputError
from expo_ray.files import write_whole
from expo_ray.reporting.groups import RunGroup
from expo_ray.reporting.runs import RunFolder

Row = tuple[Method, RunGroup]
T_95 = {
    2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262, 12: 2.201, 15: 2.145,
    20: 2.093, 30: 2.045, 60: 2.001, 120: 1.98,
}  # fmt: skip
"""Student's t for 95 %, two-sided, by the number of seeds; between two numbers the smaller one's, which is larger."""
INTRO = (
    "Every method got the same prompts and {steps} updates of {prompts} prompts with {completions} completions each. "
    "{rates} What a method samples besides its completions (explanations, hints, guided completions) comes on top: "
    "`sampled` has a run's thousands of tokens. `updates` counts steps with a gradient. Cells: pass@{k} "
    "on held-out problems in percent, mean over seeds and its 95 % interval (Student's t), cut at 0 and 100.{problems}"
)
SEARCH = (
    "The learning rate is that of a search, the same for each: {rates}, and one beyond the smallest or the largest if "
    "that is best ({beyond}); one run each on all levels with seed {seed}, which is not among the compared ones. The "
    "rate with the highest pass@{k} over all levels is taken, of equal ones the smallest."
)
OWN_PROBLEMS = " Each seed draws its own problems; the base was evaluated on those of seed 0."
WORDS = "## What was found"
"""The title of the page's section that people write."""
TRAINED = (
    "*What was trained on*: texts whose likelihood the updates raised (at most 64 in a measured step), means over "
    "seeds at the first and the last measured step. *Leaks*: the share that mentions having been told the answer, over "
    "all measured steps. *Property 1*: log-probability a token under the policy; *base*: the same under the base "
    "policy. *Property 2*: nats by which the text raises the log-probability of the gold answer. *Follows*: "
    "explanations of a wrong answer, asked for in every run and trained on in none, that end in it. A dash: nothing "
    "was made likelier there."
)
FIGURES = {
    "property 1": "trained/mean_logprob",
    "base": "trained/base_logprob",
    "property 2": "trained/answer_rise",
    "follows": "contrast/follows",
}
"""Columns of the table of what was trained on, with the metric of each."""
BY_STEP = ("property 1", "property 2")
"""Columns of FIGURES that have a table of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 for wrong input. The last line printed is the page's path."""
    parser = ArgumentParser(prog="python -m bench.ladder.page", description=__doc__)
    parser.add_argument("folder", type=Path, help="that of bench.ladder.run")
    parser.add_argument("--comparison", choices=list(COMPARISONS), default="toy", help="(default: toy)")
    parser.add_argument("--page", type=Path, help="default: FOLDER/page.md; the figures go to the same folder")
    given = parser.parse_args(arguments)
    page = (given.page or given.folder / "page.md").absolute()
    try:
        write_page(given.folder, COMPARISONS[given.comparison], page)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(page)
    return 0


def write_page(folder: Path, of: Comparison, page: Path) -> None:
    """Writes the page, with its figures beside it.

    Raises:
        DataError: no method has a finished run yet, the base was not evaluated, or runs cannot be compared.
    """
    from bench.ladder.figures import CurveRow, draw_curves, draw_trained

    base, rows = read_base(folder / "base"), finished(folder, of)
    if not rows:
        raise DataError(f"{folder}: no method has a finished run yet; run python -m bench.ladder.run {folder}")
    run = next(iter(next(iter(rows.values())).values()))[0][1].runs[0]
    check_base(base, run)
    k, levels = run.summary["evaluation"]["samples"], sorted(run.summary["evaluation"]["pass_at_k"])
    if len(levels) == 2:  # one level, and all of them: the same
        levels = ["all"]
    parts = [f"# {of.title}", of.about, _intro(of, run, k), TRAINED, *cost(folder)[1:], kept_words(page)]
    drawn: list[CurveRow] = []
    for chosen in sorted({levels for of_family in rows.values() for levels in of_family}, reverse=True):
        of_setting = {family: of_family[chosen] for family, of_family in rows.items() if chosen in of_family}
        setting = Setting(chosen, [group for of_family in of_setting.values() for _, group in of_family])
        parts += _setting(setting, of_setting, levels, k, base)
        for family, of_family in of_setting.items():
            groups, names = [group for _, group in of_family], [method.label for method, _ in of_family]
            drawn.append(CurveRow(f"{setting.title},\n{family}", groups, names))
    curves, trained = (page.with_name(f"{page.stem}_{name}.png") for name in ("curves", "trained"))
    page.parent.mkdir(parents=True, exist_ok=True)
    draw_curves(drawn, levels, k, base, curves)
    draw_trained(drawn, FIGURES, trained)
    parts += ["## Learning curves", f"![pass@{k} over updates, by level, setting and family]({curves.name})"]
    parts += ["## What was trained on, by update", f"![the columns of the tables above]({trained.name})"]
    if of.searches:
        parts += ["## The search of the learning rate", search_table(folder, of), at_the_edge(folder, of)]
    write_whole(page, "\n\n".join(part for part in parts if part) + "\n")


def _intro(of: Comparison, run: RunFolder, k: int) -> str:
    rates, beyond = (", ".join(f"{rate:g}" for rate in some) for some in (of.rates, of.beyond))
    return INTRO.format(
        steps=run.config.trainer.steps,
        prompts=run.config.trainer.prompts_per_step,
        completions=run.config.rollout.samples_per_prompt,
        rates=SEARCH.format(rates=rates, beyond=beyond, seed=of.search_seed, k=k)
        if of.searches
        else f"The learning rate is {rates} for all.",
        k=k,
        problems=OWN_PROBLEMS if run.config.data.name == "toy" else "",
    )


def _setting(
    setting: Setting, families: dict[str, list[Row]], levels: Sequence[str], k: int, base: dict[str, Any]
) -> list[str]:
    """The tables of one training setting."""
    everything = [row for of_family in families.values() for row in of_family]
    hardest = max((level for level in levels if level != "all"), default="all")
    parts = [f"## {setting.title.capitalize()}", *findings(everything, setting.title, hardest, k)]
    for family, of_family in families.items():
        parts += [f"### {family.capitalize()}", family_table(of_family, levels, k, base)]
    where = "All levels" if hardest == "all" else f"Level {hardest}"
    names = [method.label for method, _ in everything]
    parts += [
        f"{where} by number of updates, with the standard deviation over seeds:",
        updates_table(setting, names, hardest, k),
    ]
    parts += ["What was trained on:", trained_table(everything)]
    for title in BY_STEP:
        if table := step_table(everything, title):
            parts += [f"{title.capitalize()} by step, with the reach of its 95 % interval:", table]
    return parts


def kept_words(page: Path) -> str:
    """The section that people wrote into the page, which is kept when the rest is written again."""
    _, title, after = (page.read_text() if page.exists() else "").partition(f"{WORDS}\n")
    section, _, _ = after.partition("\n## ")
    return f"{title}{section}".rstrip()


def finished(folder: Path, of: Comparison) -> dict[str, dict[tuple[int, ...], list[Row]]]:
    """Family -> levels trained on -> the methods with finished runs, in the order of METHODS.

    Raises:
        DataError: runs of one method or of several cannot be compared.
    """
    found: dict[str, dict[tuple[int, ...], list[Row]]] = {}
    runs: list[RunFolder] = []
    for method in METHODS:
        rate = chosen_rate(of, search_results(folder, method))
        where = None if rate is None else runs_folder(folder, method, rate)
        if where is None or not finished_jobs(where):
            if (folder / "search" / method.name).is_dir():
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
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, mean, mean
    reach = reach_of(values)
    return mean, max(0.0, mean - reach), min(1.0, mean + reach)


def reach_of(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean of two values or more (Student's t)."""
    n = len(values)
    return T_95[max(seeds for seeds in T_95 if seeds <= n)] * statistics.stdev(values) / math.sqrt(n)


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


def family_table(rows: Sequence[Row], levels: Sequence[str], k: int, base: dict[str, Any]) -> str:
    """A table of one family's methods below the base model."""
    heads = [*("all" if level == "all" else f"L{level}" for level in levels), "all, pass@1"]
    lines = [f"| method | rate | seeds | updates | sampled | {' | '.join(heads)} |", "|---" * (5 + len(heads)) + "|"]
    for most in sorted({base["samples"], k}, reverse=True):
        cells = [f"{100 * base['pass_at_k'][level][str(of)]:.1f}" for level, of in _columns(levels, most)]
        lines.append(f"| base, pass@{most} | | | 0 | 0 | {' | '.join(cells)} |")
    for method, group in rows:
        cells = [cell(values_of(group, level, of)) for level, of in _columns(levels, k)]
        rate = float(group.runs[0].config.learner.learning_rate)
        lines.append(
            f"| {method.label} | {rate:g} | {len(group.runs)} | {updates_made(group):.0f} | "
            f"{sampled_tokens(group) / 1000:.0f} k | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _columns(levels: Sequence[str], k: int) -> list[tuple[str, int]]:
    """Level and k of a family's columns: pass@k by level, and pass@1 over all levels."""
    return [*((level, k) for level in levels), ("all", 1)]


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
    found = _by_step(group, name)
    ends = [f"{statistics.fmean(found[step]):.2f}" for step in (min(found), max(found))] if found else ["-"]
    return " to ".join(dict.fromkeys(ends))


def _by_step(group: RunGroup, name: str) -> dict[int, list[float]]:
    """Step -> a metric's values, one for each run that measured it there."""
    curves = trained_curves(group, name)
    steps = sorted({step for curve in curves for step in curve})
    return {step: [curve[step] for curve in curves if step in curve] for step in steps}


def step_table(rows: Sequence[Row], title: str) -> str:
    """One of FIGURES at each measured step: mean over seeds and its interval's reach. Empty, if no method has it."""
    found = {method.label: _by_step(group, FIGURES[title]) for method, group in rows}
    steps = sorted({step for of_method in found.values() for step in of_method})
    if not steps:
        return ""
    lines = ["| method | " + " | ".join(f"step {step}" for step in steps) + " |", "|---" * (1 + len(steps)) + "|"]
    for label, of_method in found.items():
        if of_method:
            lines.append(f"| {label} | " + " | ".join(_nats(of_method.get(step, [])) for step in steps) + " |")
    return "\n".join(lines)


def _nats(values: Sequence[float]) -> str:
    """Such as "-0.31 ± 0.14", and without a reach for one value."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.2f}" + (f" ± {reach_of(values):.2f}" if len(values) > 1 else "")


def findings(rows: Sequence[Row], title: str, hardest: str, k: int) -> list[str]:
    """Says in words which method is ahead on the hardest level and over all, and where ExP-GRPO stands."""
    said = []
    for level in dict.fromkeys((hardest, "all")):
        where = "all levels together" if level == "all" else f"level {level}"
        means = {method.label: statistics.fmean(values_of(group, level, k)) for method, group in rows}
        best = max(means.values())
        first = [label for label, mean in means.items() if mean == best]
        sentence = f"{title.capitalize()}, pass@{k} on {where}: highest is {listed(first)} with {100 * best:.1f}."
        own = means.get("ExP-GRPO")
        if own is not None:
            ahead = sorted((label for label, mean in means.items() if mean > own), key=lambda label: -means[label])
            shown = ", ".join(f"{label} ({100 * means[label]:.1f})" for label in ahead)
            sentence += f" ExP-GRPO has {100 * own:.1f}" + (f", behind {shown}." if ahead else ", behind none.")
        said.append(sentence)
    answer_only = [label.label for label, _ in rows if label.family == ANSWER]
    return [*said, f"Methods so far that learn from the answer alone: {', '.join(answer_only) or 'none'}."]


def search_table(folder: Path, of: Comparison) -> str:
    """pass@k over all levels by method and learning rate; the chosen one in bold."""
    rates = sorted((*of.rates, *of.beyond))
    lines = ["| method | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (1 + len(rates)) + "|"]
    for method in METHODS:
        if found := search_results(folder, method):
            shown = {rate: f"{100 * value:.1f}" for rate, value in found.items()}
            if (chosen := chosen_rate(of, found)) is not None:
                shown[chosen] = f"**{shown[chosen]}**"
            lines.append(f"| {method.label} | " + " | ".join(shown.get(rate, "") for rate in rates) + " |")
    return "\n".join(lines)


def at_the_edge(folder: Path, of: Comparison) -> str:
    """Names the methods whose chosen rate is the smallest or the largest tried: one beyond it may be better."""
    said = []
    results = {method: search_results(folder, method) for method in METHODS}
    for edge, name in ((min, "smallest"), (max, "largest")):
        there = [m.label for m, found in results.items() if found and edge(found) == chosen_rate(of, found)]
        if there:
            said.append(f"The {name} rate tried is the best for {listed(there)}; one beyond it may be better.")
    return " ".join(said)


def listed(names: Sequence[str]) -> str:
    """Such as "A, B and C"."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


if __name__ == "__main__":
    sys.exit(main())
