"""sweep.json in a sweep's folder: how each job ended, written after each end. One process at a time writes it."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from expo_ray.files import write_whole
from expo_ray.sweep.job import JobEnd, differing


def sweep_table(ends: Sequence[JobEnd], folder: Path, objective: str) -> Table:
    """One row a job: what sets it apart, how it ended, its time, its objective and its folder below `folder`."""
    table = Table(title=f"sweep in {folder}", title_justify="left")
    for heading in ("job", "overrides", "ended", "seconds", objective, "folder"):
        table.add_column(heading, justify="right" if heading in ("job", "seconds", objective) else "left")
    for end, own in zip(ends, differing([end.overrides for end in ends]), strict=True):
        value = "" if end.objective is None else f"{end.objective:.3f}"
        where = Path(end.folder)
        shown = where.relative_to(folder) if where.is_relative_to(folder) else where
        table.add_row(str(end.job), " ".join(own), end.ended, f"{end.seconds:.1f}", value, str(shown))
    return table


FILE = "sweep.json"


def begin(folder: Path, command: str) -> None:
    """Starts the list anew for one call of the command; the time of earlier calls is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _load(folder)
    before = earlier.get("seconds_before", 0.0) + earlier.get("seconds", 0.0)
    _write(
        folder,
        {"command": command, "began": time.time(), "seconds_before": round(before, 1), "seconds": 0.0, "jobs": []},
    )


def record(folder: Path, end: JobEnd) -> None:
    """Adds how a job ended."""
    content = _load(folder)
    content["jobs"].append(asdict(end))
    content["seconds"] = round(time.time() - content["began"], 1)
    _write(folder, content)


def ends(folder: Path) -> list[JobEnd]:
    """The jobs of the last call, in their order; empty where there is no sweep."""
    return sorted((JobEnd(**line) for line in _load(folder).get("jobs", [])), key=lambda end: end.job)


def _load(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {}


def _write(folder: Path, content: dict[str, Any]) -> None:
    write_whole(folder / FILE, json.dumps(content, indent=1) + "\n")
