"""The report's tables as HTML. Every text from a run is escaped here."""

import statistics
from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any

from omegaconf import OmegaConf

from expo_ray.reporting.groups import RunGroup, differences
from expo_ray.reporting.runs import RunFolder
from expo_ray.reporting.samples import run_names
from expo_ray.reporting.sections import time_shares


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """An HTML table; the first column names the row. All texts are escaped."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    kind = ' class="numbers"' if numbers else ""
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table{kind}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def runs_table(groups: Sequence[RunGroup], now: datetime) -> str:
    """One row a run: what it is and how far it is; folders and commands folded away below."""
    header = ("run", "updates", "state", "model", "data", "samples of a step")
    rows, origins = [], []
    for name, run in zip(run_names(groups), [run for group in groups for run in group.runs], strict=True):
        explanations = int(_value(run, "rollout.explanations_per_prompt", "0"))
        told = f"{_value(run, 'trainer.prompts_per_step')} prompts x {_value(run, 'rollout.samples_per_prompt')}"
        told += f" + {explanations} explained" if explanations else ""
        updates = f"{run.steps_done} of {_value(run, 'trainer.steps')}"
        rows.append((name, updates, state_of(run, now), _value(run, "model.path"), _data(run), told))
        origins.append((name, str(run.path.absolute()), str(run.summary.get("command", "not recorded yet"))))
    folded = table("Folders and commands", ("run", "folder", "command"), origins, numbers=False)
    return (
        table("Runs", header, rows, numbers=False)
        + f"<details><summary>folders and commands</summary>{folded}</details>"
    )


def state_of(run: RunFolder, now: datetime) -> str:
    """Finished, stopped, or without a summary: then how long ago it last wrote."""
    if run.summary:
        seconds = run.summary.get("seconds")
        took = f" in {seconds / 60:.1f} min" if isinstance(seconds, int | float) else ""
        return ("finished" if run.summary.get("finished") else "stopped early") + took
    files = [run.path / name for name in ("metrics.jsonl", "evaluations.jsonl", "config.yaml")]
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=now.timestamp())
    minutes = max(0.0, now.timestamp() - newest) / 60
    return f"going, or broken off: last record {minutes:.0f} min before this report"


def differences_table(groups: Sequence[RunGroup]) -> str:
    """Settings that are not the same in all groups; a sentence where there are none."""
    if len(groups) == 1:
        return '<p class="empty">Runs that differ only in their seed are one group: there is nothing to compare.</p>'
    found = differences([group.settings for group in groups])
    if not found:
        return '<p class="empty">No setting differs.</p>'
    header = ("setting", *[group.label for group in groups])
    return table("Settings that differ", header, [(key, *values) for key, values in found.items()], numbers=False)


def held_out_table(groups: Sequence[RunGroup]) -> str:
    """The last evaluation by level: mean over seeds, with the standard deviation where there are several."""
    tables = []
    for k in sorted({1, max(_ks(groups), default=0)} & _ks(groups), reverse=True):
        levels = sorted(_levels(groups), key=lambda level: (level == "all", level))
        rows = []
        base = [
            run.evaluations[0] for g in groups for run in g.runs if _has(run) and run.evaluations[0]["steps_done"] == 0
        ]
        if base:
            rows.append(("base model, 0 updates", *[_cell(base, level, k) for level in levels]))
        for group in groups:
            last = [run.evaluations[-1] for run in group.runs if _has(run) and run.evaluations[-1]["steps_done"] > 0]
            if last:
                done = ", ".join(str(one) for one in sorted({line["steps_done"] for line in last}))
                rows.append((f"{group.label}, {done} updates", *[_cell(last, level, k) for level in levels]))
        header = ("policy", *[f"level {level}" if level != "all" else "all" for level in levels])
        caption = f"pass@{k} on held-out problems, percent; mean and standard deviation over runs"
        tables.append(table(caption, header, rows))
    return "".join(tables)


def time_table(groups: Sequence[RunGroup]) -> str:
    """The share of all steps' time that each phase took; empty without steps."""
    phases, shares = time_shares(groups)
    rows = [
        (group.label, *[f"{100 * share:.1f}" for share in row])
        for group, row in zip(groups, shares, strict=False)
        if row
    ]
    return table("Share of all steps' time, percent", ("runs", *phases), rows) if rows else ""


def notes_list(notes: Sequence[str]) -> str:
    """Remarks on what could not be read or is left out."""
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _has(run: RunFolder) -> bool:
    return bool(run.evaluations)


def _ks(groups: Sequence[RunGroup]) -> set[int]:
    return {int(k) for values in _pass_at_k(groups) for of in values.values() for k in of}


def _levels(groups: Sequence[RunGroup]) -> set[str]:
    return {str(level) for values in _pass_at_k(groups) for level in values}


def _pass_at_k(groups: Sequence[RunGroup]) -> list[dict[str, dict[str, float]]]:
    return [line["pass_at_k"] for group in groups for run in group.runs for line in run.evaluations]


def _cell(evaluations: Sequence[dict[str, Any]], level: str, k: int) -> str:
    values = [100 * of["pass_at_k"][level][str(k)] for of in evaluations if str(k) in of["pass_at_k"].get(level, {})]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} \N{PLUS-MINUS SIGN} {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _value(run: RunFolder, key: str, default: str = "?") -> str:
    return str(OmegaConf.select(run.config, key, default=default))


def _data(run: RunFolder) -> str:
    levels = OmegaConf.select(run.config, "data.levels", default=None)
    path = OmegaConf.select(run.config, "data.path", default=None)
    told = _value(run, "data.name") + (f" ({path})" if path else "")
    return f"{told}, levels {', '.join(map(str, levels))}" if levels else f"{told}, all levels"
