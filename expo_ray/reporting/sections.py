"""The report's sections of charts: which recorded numbers (docs/metrics.md) are drawn where."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from expo_ray.reporting.charts import (
    RAW,
    Curves,
    Section,
    Spec,
    group_chart,
    group_legend,
    group_series,
    over_seeds,
    spec_charts,
)
from expo_ray.reporting.groups import RunGroup
from expo_ray.reporting.runs import RunFolder, finite

MEASURED = {
    "rss_mib": ("resident memory", "MiB"),
    "threads": ("threads", "number"),
    "open_files": ("open files", "number"),
}
NAME = re.compile(r"memory/(?P<kind>.+?)(-\d+)?_(?P<what>rss_mib|threads|open_files)")


def usage_charts(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """A chart for each kind of actor and measure: at each update the largest value among the kind's actors."""
    names: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted({name for group in groups for name in group.metric_names()}):
        match = NAME.fullmatch(name)
        if match:
            names[match["what"], match["kind"]].append(name)
    charts = []
    for what, (told, unit) in MEASURED.items():
        for kind in sorted(kind for of, kind in names if of == what):
            several = len(names[what, kind]) > 1
            title = f"{kind}: {told}" + (", the largest of its actors" if several else "")
            charts.append(group_chart(Spec(kind, title, unit), [_largest(g, names[what, kind]) for g in groups]))
    store = Spec("memory/object_store_mib", "Ray's object store, all nodes", "MiB")
    return [chart for chart in charts if chart] + spec_charts([store], groups)


def _largest(group: RunGroup, names: Sequence[str]) -> Curves:
    found = []
    for run in group.runs:
        largest: dict[int, float] = {}
        for name in names:
            for step, value in zip(*run.series(name), strict=True):
                largest[step] = max(value, largest.get(step, value))
        if largest:
            found.append(largest)
    return found


ORDER = ("generate", "verify", "properties", "update", "sync")
REST = "rest of the step"


def phases_of(groups: Sequence[RunGroup]) -> list[str]:
    """All recorded phases, the known ones first and the rest of the step last."""
    names = {n.removeprefix("time/") for g in groups for n in g.metric_names() if n.startswith("time/")} - {"step"}
    known = [phase for phase in ORDER if phase in names]
    return [*known, *sorted(names - set(known)), REST] if names else []


def phase_seconds(run: RunFolder, phases: Sequence[str]) -> dict[str, dict[int, float]]:
    """Phase -> updates done -> seconds. A phase that a step did not have took 0 there; the rest is never below 0."""
    steps, totals = run.series("time/step")
    measured = {phase: dict(zip(*run.series(f"time/{phase}"), strict=True)) for phase in phases if phase != REST}
    seconds = {phase: {step: of.get(step, 0.0) for step in steps} for phase, of in measured.items()}
    rest = {s: max(0.0, total - sum(of[s] for of in seconds.values())) for s, total in zip(steps, totals, strict=True)}
    return seconds | {REST: rest}


def time_section(groups: Sequence[RunGroup]) -> Section:
    """A stacked chart for each group: means over its seeds."""
    phases = phases_of(groups)
    charts: list[dict[str, Any]] = []
    for group in groups if phases else []:
        by_run = [phase_seconds(run, phases) for run in group.runs if run.metrics]
        series = []
        for entry, phase in enumerate(phases):
            found = over_seeds([seconds[phase] for seconds in by_run])
            if found["x"]:
                series.append({"entry": entry, "x": found["x"], "mean": found["mean"]})
        if series:
            charts.append({"title": group.label, "unit": "seconds", "stacked": True, "variants": {RAW: series}})
    return Section(
        "time", "Where a step's time goes",
        "Seconds of each phase, stacked, mean over seeds; a bar is a step. The rest is what no phase measures.",
        "No step is recorded yet.", charts, phases, phases, styles="phases",
    )  # fmt: skip


def time_shares(groups: Sequence[RunGroup]) -> tuple[list[str], list[list[float]]]:
    """Phases, and for each group the share of all its steps' time that each of them took; empty without steps."""
    phases = phases_of(groups)
    rows = []
    for group in groups if phases else []:
        by_run = [phase_seconds(run, phases) for run in group.runs]
        sums = [sum(sum(seconds[phase].values()) for seconds in by_run) for phase in phases]
        rows.append([float(share) for share in np.array(sums) / sum(sums)] if sum(sums) else [])
    return phases, rows


ELSEWHERE = ("pass_rate/", "explanations/", "properties/", "time/", "memory/", "sync/version")
"""Prefixes of the numbers that a section draws in its own way."""
KINDS = ("gold", "explanation", "free")
KIND_LEGEND = ["gold solution", "self-explanation", "free completion"]
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
    Spec("mismatch/ratio_mean", "mean importance ratio, trainer over engine", "ratio"),
    Spec("mismatch/truncated", "tokens whose ratio is capped", "share of tokens", share=True),
    Spec("mismatch/masked", "tokens left out", "share of tokens", share=True),
)
SPEED = (
    Spec("time/step", "time of a step", "seconds"),
    Spec("tokens/per_second", "tokens generated in a second of the step", "tokens/s"),
)


def all_sections(groups: Sequence[RunGroup]) -> list[Section]:
    """The sections in the page's order, empty ones included."""
    legend, names = group_legend(groups), [group.label for group in groups]

    def section(
        key: str, title: str, charts: list[dict[str, Any]], told: str, empty: str, folded: bool = False
    ) -> Section:
        return Section(key, title, told, empty, charts, legend, names, folded=folded)

    return [
        section(
            "levels", "Pass rate by level while training", _by_level(groups),
            "Right completions among those sampled for training, at the training temperature.",
            "No step with graded completions is recorded yet.",
        ),
        section(
            "held_out", "Held-out evaluations", held_out_charts(groups),
            "Problems that were not trained on; 0 updates is the base model. pass@k is unbiased.",
            "No evaluation is recorded yet (trainer.eval_every, eval.before).",
        ),
        section(
            "learning", "Learning", spec_charts(LEARNING, groups),
            "What the updates do. Each number is explained in docs/metrics.md.",
            "No step is recorded yet.",
        ),
        section(
            "explanations", "Self-explanations", _explanation_charts(groups),
            "Explanations are sampled with the answer given, graded, and kept after the filters.",
            "These runs sample no self-explanations.",
        ),
        properties_section(groups),
        time_section(groups),
        section(
            "speed", "Speed", spec_charts(SPEED, groups),
            "Evaluations and checkpoints are not in a step's time.", "No step is recorded yet.",
        ),
        section(
            "sync", "Weight sync and mismatch", spec_charts(SYNC, groups),
            "After each update the engines get the new weights; a probe compares them with the learner's: the largest "
            "difference of a token's log-probability. The mismatch is the absolute difference of each sampled token's "
            "log-probability in trainer and engine. Dotted line: the bound. On a log axis, 0 is at the bottom.",
            "No step is recorded yet.",
        ),
        section(
            "memory", "Memory and processes", usage_charts(groups),
            "Of the actors' processes, with those that they started.",
            "Not measured in these runs (logging.usage_every).",
        ),
        section(
            "other", "Other recorded numbers", spec_charts(_other_specs(groups), groups),
            "Whatever else metrics.jsonl has, by its name; docs/metrics.md tells the units.",
            "Nothing else is recorded.", folded=True,
        ),
    ]  # fmt: skip


def held_out_charts(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """A chart a level; the variants are the k of pass@k, the largest first."""
    found: dict[str, dict[int, list[Curves]]] = {}
    for index, group in enumerate(groups):
        for run in group.runs:
            for (level, k), curve in _evaluation_curves(run.evaluations).items():
                by_k = found.setdefault(level, {})
                by_k.setdefault(k, [[] for _ in groups])[index].append(curve)
    return [
        {
            "title": f"level {level}" if level != "all" else "all levels",
            "unit": "pass@k",
            "share": True,
            "variants": {f"pass@{k}": group_series(by_k[k]) for k in sorted(by_k, reverse=True)},
        }
        for level, by_k in sorted(found.items(), key=lambda item: (item[0] == "all", item[0]))
    ]


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
        ("leaked", "mention having been given the answer"),
        ("kept", "kept"),
    )
    charts = [
        group_chart(
            Spec(name, title, "share of those sampled", share=True),
            [_shares(g.curves(f"explanations/{name}"), g.curves("explanations/sampled")) for g in groups],
        )
        for name, title in wanted
    ]
    trained = Spec("explanations/trained", "explanations trained on", "number a step")
    return [chart for chart in charts if chart] + spec_charts([trained], groups)


def _shares(parts: Curves, wholes: Curves) -> Curves:
    shares = [
        {step: part[step] / whole[step] for step in part if whole.get(step)}
        for part, whole in zip(parts, wholes, strict=True)
    ]
    return [curve for curve in shares if curve]


def properties_section(groups: Sequence[RunGroup]) -> Section:
    """Both properties over time, a chart for each group: mean, and the samples' 10th to 90th percentile as the band."""
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
        charts, KIND_LEGEND, KIND_LEGEND, styles="kinds",
    )  # fmt: skip


def _other_specs(groups: Sequence[RunGroup]) -> list[Spec]:
    """Every recorded number that no other section draws."""
    drawn = {spec.name for spec in (*LEARNING, *SYNC, *SPEED)} | {spec.bound for spec in SYNC}
    names = {name for group in groups for name in group.metric_names()} - drawn
    return [Spec(name, name, "as recorded") for name in sorted(names) if not name.startswith(ELSEWHERE)]
