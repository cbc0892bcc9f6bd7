"""Where the time of a step goes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from expo_ray.reporting.charts import RAW, Section
from expo_ray.reporting.groups import RunGroup
from expo_ray.reporting.runs import RunFolder
from expo_ray.reporting.series import over_seeds

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
