"""The report's tables as HTML. Every text from a run is escaped here."""

from collections.abc import Sequence
from datetime import datetime
from html import escape

from omegaconf import OmegaConf

from expo_ray.reporting.groups import RunGroup, differences
from expo_ray.reporting.runs import RunFolder
from expo_ray.reporting.samples import run_names


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Makes an HTML table whose first column names the row. All texts are escaped."""
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
    """Lists the runs with their state and progress; folders and commands are collapsed below."""
    header = ("run", "updates", "state", "model", "data", "samples per step")
    rows, origins = [], []
    for name, run in zip(run_names(groups), [run for group in groups for run in group.runs], strict=True):
        explanations = int(_value(run, "rollout.explanations_per_prompt", "0"))
        sampled = f"{_value(run, 'trainer.prompts_per_step')} prompts x {_value(run, 'rollout.samples_per_prompt')}"
        sampled += f" + {explanations} explained" if explanations else ""
        updates = f"{run.steps_done} of {_value(run, 'trainer.steps')}"
        rows.append((name, updates, state_of(run, now), _value(run, "model.path"), _data(run), sampled))
        origins.append((name, str(run.path.absolute()), str(run.summary.get("command", "not recorded yet"))))
    folded = table("Folders and commands", ("run", "folder", "command"), origins, numbers=False)
    return (
        table("Runs", header, rows, numbers=False)
        + f"<details><summary>folders and commands</summary>{folded}</details>"
    )


def state_of(run: RunFolder, now: datetime) -> str:
    """Says whether a run finished or stopped; without a summary, how long ago it last wrote."""
    if run.summary:
        seconds = run.summary.get("seconds")
        took = f" in {seconds / 60:.1f} min" if isinstance(seconds, int | float) else ""
        return ("finished" if run.summary.get("finished") else "stopped early") + took
    files = [run.path / name for name in ("metrics.jsonl", "evaluations.jsonl", "config.yaml")]
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=now.timestamp())
    minutes = max(0.0, now.timestamp() - newest) / 60
    return f"running or interrupted: last record {minutes:.0f} min before this report"


def differences_table(groups: Sequence[RunGroup]) -> str:
    """Tabulates the settings that differ between groups, or says that there are none."""
    if len(groups) == 1:
        return '<p class="empty">Runs that differ only in their seed are one group: there is nothing to compare.</p>'
    found = differences([group.settings for group in groups])
    if not found:
        return '<p class="empty">No setting differs.</p>'
    header = ("setting", *[group.label for group in groups])
    return table("Settings that differ", header, [(key, *values) for key, values in found.items()], numbers=False)


def notes_list(notes: Sequence[str]) -> str:
    """Lists remarks on what could not be read or is left out; "" without remarks."""
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _value(run: RunFolder, key: str, default: str = "?") -> str:
    return str(OmegaConf.select(run.config, key, default=default))


def _data(run: RunFolder) -> str:
    levels = OmegaConf.select(run.config, "data.levels", default=None)
    parts = OmegaConf.select(run.config, "data.sources", default=None) or [OmegaConf.select(run.config, "data")]
    paths = ", ".join(str(path) for part in parts or () if part and (path := part.get("path") or part.get("hub")))
    source = _value(run, "data.name") + (f" ({paths})" if paths else "")
    return f"{source}, levels {', '.join(map(str, levels))}" if levels else f"{source}, all levels"
