"""The report's sections: which recorded numbers (docs/metrics.md) are drawn or tabulated where."""

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from expo_ray.config.errors import DataError
from expo_ray.reporting.charts import (
    RAW,
    Curves,
    Section,
    Spec,
    Table,
    group_chart,
    group_legend,
    group_series,
    over_seeds,
    shares,
    short,
    spec_charts,
)
from expo_ray.reporting.groups import RunGroup
from expo_ray.reporting.likelihood import KINDS, PROPERTIES, Likelihoods, interval_text, read_likelihoods, sentence
from expo_ray.reporting.runs import RunFolder, finite, level_title

MEASURED = {
    "rss_mib": ("resident memory", "MiB"),
    "threads": ("threads", "number"),
    "open_files": ("open files", "number"),
}
NAME = re.compile(r"memory/(?P<kind>.+?)(-\d+)?_(?P<what>rss_mib|threads|open_files)")


def usage_charts(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Makes a chart per kind of actor and measure, with the largest value among the kind's actors at each update."""
    names: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted({name for group in groups for name in group.metric_names()}):
        match = NAME.fullmatch(name)
        if match:
            names[match["what"], match["kind"]].append(name)
    charts = []
    for what, (measure, unit) in MEASURED.items():
        for kind in sorted(kind for of, kind in names if of == what):
            several = len(names[what, kind]) > 1
            title = f"{kind}: {measure}" + (", the largest of its actors" if several else "")
            charts.append(group_chart(Spec(kind, title, unit), [_largest(g, names[what, kind]) for g in groups]))
    store = Spec("memory/object_store_mib", "Ray's object store, all nodes", "MiB")
    return [chart for chart in charts if chart] + spec_charts([store], groups)


def _largest(group: RunGroup, names: Sequence[str]) -> Curves:
    found = []
    for run in group.runs:
        largest: dict[int, float] = {}
        for name in names:
            for step, value in run.curve(name).items():
                largest[step] = max(value, largest.get(step, value))
        if largest:
            found.append(largest)
    return found


ORDER = ("generate", "verify", "properties", "update", "sync")
REST = "rest of the step"


def phases_of(groups: Sequence[RunGroup]) -> list[str]:
    """Returns all recorded phases, the known ones first and the rest of the step last."""
    names = {n.removeprefix("time/") for g in groups for n in g.metric_names() if n.startswith("time/")} - {"step"}
    known = [phase for phase in ORDER if phase in names]
    return [*known, *sorted(names - set(known)), REST] if names else []


def phase_seconds(run: RunFolder, phases: Sequence[str]) -> dict[str, dict[int, float]]:
    """Returns phase -> updates done -> seconds; 0 where a step lacks the phase, and never below 0 for the rest."""
    totals = run.curve("time/step")
    measured = {phase: run.curve(f"time/{phase}") for phase in phases if phase != REST}
    seconds = {phase: {step: of.get(step, 0.0) for step in totals} for phase, of in measured.items()}
    rest = {s: max(0.0, total - sum(of[s] for of in seconds.values())) for s, total in totals.items()}
    return seconds | {REST: rest}


def time_section(groups: Sequence[RunGroup]) -> Section:
    """Makes a stacked chart per group (means over its seeds) and a table of the phases' shares."""
    phases = phases_of(groups)
    charts: list[dict[str, Any]] = []
    shares: list[list[str]] = []
    for group in groups if phases else []:
        by_run = [phase_seconds(run, phases) for run in group.runs if run.metrics]
        series = []
        for entry, phase in enumerate(phases):
            found = over_seeds([seconds[phase] for seconds in by_run])
            if found["x"]:
                series.append({"entry": entry, "x": found["x"], "mean": found["mean"]})
        if series:
            charts.append({"title": group.label, "unit": "seconds", "stacked": True, "variants": {RAW: series}})
        sums = [sum(sum(seconds[phase].values()) for seconds in by_run) for phase in phases]
        if sum(sums):
            shares.append([group.label, *(f"{100 * part / sum(sums):.1f}" for part in sums)])
    return Section(
        "time", "Where a step's time goes",
        "Seconds of each phase, stacked, mean over seeds; a bar is a step. The rest is time outside all phases.",
        "No step is recorded yet.", charts, phases, phases, styles="phases",
        tables=[("Share of all steps' time, percent", ("runs", *phases), shares)] if shares else [],
    )  # fmt: skip


ELSEWHERE = ("pass_rate/", "explanations/", "properties/", "time/", "memory/", "sync/version")
"""Prefixes of the numbers that a section draws in its own way."""
LEARNING = (
    Spec("reward/mean", "mean reward, all levels", "reward"),
    Spec("groups/no_signal", "groups without signal (rewards all equal)", "share of groups", share=True),
    Spec("loss/total", "loss", "loss"),
    Spec("sft/logprob", "log-probability of the SFT term's targets", "nats a token", zero_is_absent=True),
    Spec("dpo/margin", "DPO margin", "nats"),
    Spec("dpo/accuracy", "pairs with a margin above 0", "share of pairs", share=True),
    Spec("policy/entropy", "entropy of the policy", "nats a token"),
    Spec("kl/reference", "KL to the reference, free completions", "nats a token", zero_is_absent=True),
    Spec("kl/conditioned", "KL to the reference, explanations", "nats a token", zero_is_absent=True),
    Spec("policy/clip_fraction", "tokens whose gradient the clip decides", "share of tokens", share=True),
    Spec("update/gradient_norm", "gradient norm before clipping", "norm"),
    Spec("update/learning_rate", "learning rate", "rate"),
    Spec("completions/mean_tokens", "mean length of a completion", "tokens"),
    Spec("completions/truncated", "completions cut at the length limit", "share", share=True),
)
SYNC = (
    Spec("sync/seconds", "time of a weight sync", "seconds"),
    Spec("sync/max_difference", "probe, learner against engines", "nats", log=True, bound="sync/tolerance"),
    Spec("mismatch/mean_abs", "mismatch, mean", "nats a token", log=True, bound="trainer.max_mismatch"),
    Spec("mismatch/max", "mismatch, largest", "nats", log=True),
    Spec("mismatch/ratio_mean", "mean importance ratio, learner over engine", "ratio"),
    Spec("mismatch/truncated", "tokens whose ratio is capped", "share of tokens", share=True),
    Spec("mismatch/masked", "tokens left out", "share of tokens", share=True),
)
SPEED = (
    Spec("time/step", "time of a step", "seconds"),
    Spec("tokens/per_second", "tokens generated in a second of the step", "tokens/s"),
)


def all_sections(groups: Sequence[RunGroup]) -> list[Section]:
    """Returns the sections in the page's order, empty ones included."""
    return [
        _of_groups(
            groups, "levels", "Pass rate by level while training", _by_level(groups),
            "Right completions among those sampled for training, at the training temperature.",
            "No step with graded completions is recorded yet.",
        ),
        _of_groups(
            groups, "held_out", "Held-out evaluations", held_out_charts(groups),
            "Problems that were not trained on; 0 updates is the base model. pass@k is unbiased.",
            "No evaluation is recorded yet (trainer.eval_every, eval.before).", held_out_tables(groups),
        ),
        _of_groups(
            groups, "learning", "Learning", spec_charts(LEARNING, groups),
            "What the updates do. docs/metrics.md explains each number.",
            "No step is recorded yet.",
        ),
        _of_groups(
            groups, "explanations", "Self-explanations", _explanation_charts(groups),
            "Explanations are sampled with the answer given, graded, and kept after the filters.",
            "These runs sample no self-explanations.",
        ),
        likelihood_section(groups),
        properties_section(groups),
        time_section(groups),
        _of_groups(
            groups, "speed", "Speed", spec_charts(SPEED, groups),
            "The time of a step excludes evaluations and checkpoints.", "No step is recorded yet.",
        ),
        _of_groups(
            groups, "sync", "Weight sync and mismatch", spec_charts(SYNC, groups),
            "After each update the engines get the new weights; a probe compares them with the learner's and "
            "records the largest difference of a token's log-probability. The mismatch is the absolute difference of "
            "each sampled token's log-probability in learner and engine. Dotted line: the bound. Log axes "
            "show 0 at the bottom.",
            "No step is recorded yet.",
        ),
        _of_groups(
            groups, "memory", "Memory and processes", usage_charts(groups),
            "Measured over the actors' processes and the processes that they started.",
            "Not measured in these runs (logging.usage_every).",
        ),
        _of_groups(
            groups, "other", "Other recorded numbers", spec_charts(_other_specs(groups), groups),
            "All other numbers in metrics.jsonl by their names; docs/metrics.md gives the units.",
            "Nothing else is recorded.", folded=True,
        ),
    ]  # fmt: skip


def _of_groups(
    groups: Sequence[RunGroup], key: str, title: str, charts: list[dict[str, Any]], intro: str, empty: str,
    tables: Sequence[Table] = (), folded: bool = False,
) -> Section:  # fmt: skip
    """Makes a section whose charts have a line per group."""
    names = [group.label for group in groups]
    return Section(key, title, intro, empty, charts, group_legend(groups), names, folded=folded, tables=list(tables))


def held_out_charts(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """Makes a chart per level; the variants are the k of pass@k, the largest first."""
    found: dict[str, dict[int, list[Curves]]] = {}
    for index, group in enumerate(groups):
        for run in group.runs:
            for (level, k), curve in _evaluation_curves(run.evaluations).items():
                by_k = found.setdefault(level, {})
                by_k.setdefault(k, [[] for _ in groups])[index].append(curve)
    return [
        {
            "title": level_title(level) if level != "all" else "all levels",
            "unit": "pass@k",
            "share": True,
            "variants": {f"pass@{k}": group_series(by_k[k]) for k in sorted(by_k, reverse=True)},
        }
        for level, by_k in sorted(found.items(), key=lambda item: (item[0] == "all", item[0]))
    ]


def held_out_tables(groups: Sequence[RunGroup]) -> list[Table]:
    """Tabulates the last evaluation by level, for the largest k and for 1: mean and standard deviation over runs."""
    evaluated = [(group, [run.evaluations for run in group.runs if run.evaluations]) for group in groups]
    scores = [line["pass_at_k"] for _, of_group in evaluated for lines in of_group for line in lines]
    ks = {int(k) for score in scores for values in score.values() for k in values}
    levels = sorted({str(level) for score in scores for level in score}, key=lambda level: (level == "all", level))
    base = [lines[0] for _, of_group in evaluated for lines in of_group if lines[0]["steps_done"] == 0]
    rows = [("base model, 0 updates", base)] if base else []
    for group, of_group in evaluated:
        if last := [lines[-1] for lines in of_group if lines[-1]["steps_done"] > 0]:
            done = ", ".join(map(str, sorted({line["steps_done"] for line in last})))
            rows.append((f"{group.label}, {done} updates", last))
    header = ("policy", *map(level_title, levels))
    return [
        (
            f"pass@{k} on held-out problems, percent; mean and standard deviation over runs",
            header,
            [(name, *[_score(lines, level, k) for level in levels]) for name, lines in rows],
        )
        for k in sorted({1, max(ks, default=0)} & ks, reverse=True)
    ]


def _score(evaluations: Sequence[dict[str, Any]], level: str, k: int) -> str:
    values = [100 * of["pass_at_k"][level][str(k)] for of in evaluations if str(k) in of["pass_at_k"].get(level, {})]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} \N{PLUS-MINUS SIGN} {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _evaluation_curves(evaluations: list[dict[str, Any]]) -> dict[tuple[str, int], dict[int, float]]:
    curves: dict[tuple[str, int], dict[int, float]] = {}
    for line in evaluations:
        for level, values in line["pass_at_k"].items():
            for k, value in values.items():
                if finite(value) is not None:
                    curves.setdefault((str(level), int(k)), {})[line["steps_done"]] = value
    return curves


def _by_level(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    names = sorted({name for g in groups for name in g.metric_names() if name.startswith("pass_rate/level_")})
    specs = [Spec(name, f"level {name.rsplit('_', 1)[-1]}", "pass rate", share=True) for name in names]
    return spec_charts([*specs, Spec("pass_rate/all", "all levels", "pass rate", share=True)], groups)


def _explanation_charts(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    wanted = (
        ("correct", "right by the verifier"),
        ("leaked", "mention that the answer was given"),
        ("kept", "kept"),
        ("answer_replaced", "kept, with the gold answer in place of their own"),
    )
    charts = [
        group_chart(
            Spec(name, title, "share of those sampled", share=True),
            [[*filter(None, (_share_explained(run, name) for run in group.runs))] for group in groups],
        )
        for name, title in wanted
    ]
    trained = Spec("explanations/trained", "explanations trained on", "number per step")
    return [chart for chart in charts if chart] + spec_charts([trained], groups)


def _share_explained(run: RunFolder, name: str) -> dict[int, float]:
    return shares(run.curve(f"explanations/{name}"), run.curve("explanations/sampled"))


def likelihood_section(groups: Sequence[RunGroup]) -> Section:
    """Compares gold solutions, explanations and free completions under the base policy (the paper's figure 2)."""
    charts: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    remarks = []
    for group in groups:
        try:
            found = read_likelihoods([run.path for run in group.runs])
        except DataError:  # these runs measured nothing at step 0
            continue
        for kind, name in KINDS.items():
            if problems := len(found.of("mean_logprob", kind)):
                cells = [interval_text(found.estimate(of, kind)) for of in PROPERTIES]
                rows.append([f"{group.label}: {name}", str(problems), *cells])
        if ratio := sentence(found):
            remarks.append(f"{group.label}: {ratio}")
        if series := _by_problem_level(found):
            title = f"{group.label}: property 1 by level"
            charts.append({"title": title, "unit": "nats a token", "over": "level", "variants": {RAW: series}})
    header = ("sample", "problems", "property 1, nats a token", "property 2, nats")
    return Section(
        "likelihood", "Likelihood of the three kinds of samples",
        " ".join((
            "The samples of the first step, before any update: property 1 is a sample's log-probability given the "
            "question alone, property 2 its rise of the right answer's log-probability. Each problem counts once; "
            "bands and brackets are 95 % bootstrap intervals over problems.",
            *remarks,
        )),
        "Not measured in these runs (algo.properties_every=1 and logging.samples_per_step at step 0).",
        charts, list(KINDS.values()), list(KINDS.values()), styles="kinds",
        tables=[("Both properties, mean over problems", header, rows)] if rows else [],
    )  # fmt: skip


def _by_problem_level(found: Likelihoods) -> list[dict[str, Any]]:
    """Returns property 1 over the problems' levels, a series per kind, with bootstrap intervals as bands."""
    levels = sorted({level for level in found.levels.values() if level.isdigit()}, key=int)
    series = []
    for entry, kind in enumerate(KINDS):
        estimates = {int(level): found.estimate("mean_logprob", kind, level) for level in levels}
        known = {level: estimate for level, estimate in estimates.items() if estimate is not None}
        if known:
            mean, low, high = ([short(value) for value in of] for of in zip(*known.values(), strict=True))
            series.append({"entry": entry, "x": list(known), "mean": mean, "low": low, "high": high})
    return series


def properties_section(groups: Sequence[RunGroup]) -> Section:
    """Makes a chart per group and property over time; the band is the samples' 10th to 90th percentile."""
    charts = []
    for group in groups:
        for name, title, unit in (
            ("mean_logprob", "property 1", "nats a token"),
            ("answer_rise", "property 2", "nats"),
        ):
            series = []
            for entry, kind in enumerate(KINDS):
                low, mean, high = (
                    over_seeds(group.curves(f"properties/{kind}/{name}/{of}")) for of in ("p10", "mean", "p90")
                )
                if mean["x"]:
                    series.append(
                        {"entry": entry, "x": mean["x"], "mean": mean["mean"], "low": low["mean"], "high": high["mean"]}
                    )
            if series:
                charts.append({"title": f"{group.label}: {title}", "unit": unit, "variants": {RAW: series}})
    return Section(
        "properties", "The two properties over time",
        "Property 1: the sample's mean log-probability under the policy, given the question alone. Property 2: how "
        "much it raises the log-probability of the right answer. Lines are means over samples and seeds, bands reach "
        "from the 10th to the 90th percentile of the samples.",
        "Not measured in these runs (algo.properties_every=0, or no such step yet).",
        charts, list(KINDS.values()), list(KINDS.values()), styles="kinds",
    )  # fmt: skip


def _other_specs(groups: Sequence[RunGroup]) -> list[Spec]:
    """Returns a chart specification for each recorded number that no other section draws."""
    drawn = {spec.name for spec in (*LEARNING, *SYNC, *SPEED)} | {spec.bound for spec in SYNC}
    names = {name for group in groups for name in group.metric_names()} - drawn
    return [Spec(name, name, "as recorded") for name in sorted(names) if not name.startswith(ELSEWHERE)]
