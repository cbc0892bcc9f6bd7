"""sweep.json in a sweep's folder: how each job ended, written after each end. One process at a time writes it."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from expo_ray.files import write_whole
from expo_ray.sweep.job import Ended, Job, JobEnd, differing

FILE = "sweep.json"


def sweep_table(ends: Sequence[JobEnd], folder: Path, objective: str) -> Table:
    """Makes a table with a row per job: what sets it apart, how it ended, its time, its objective and its folder."""
    table = Table(title=f"sweep in {folder}", title_justify="left")
    for heading in ("job", "overrides", "ended", "seconds", objective, "folder"):
        table.add_column(heading, justify="right" if heading in ("job", "seconds", objective) else "left")
    for end, own in zip(ends, differing([end.overrides for end in ends]), strict=True):
        value = "" if end.objective is None else f"{end.objective:.3f}"
        where = Path(end.folder)
        shown = where.relative_to(folder) if where.is_relative_to(folder) else where
        table.add_row(str(end.job), " ".join(own), end.ended, f"{end.seconds:.1f}", value, str(shown))
    return table


def begin(folder: Path, command: str, jobs: int | None = None) -> None:
    """Starts a new list for one call of the command; the time of earlier calls is kept.

    Args:
        folder: the sweep's folder.
        command: continues this sweep.
        jobs: how many there will be; None if a sweeper chooses them on the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _load(folder)
    before = earlier.get("seconds_before", 0.0) + earlier.get("seconds", 0.0)
    content = {"command": command, "began": time.time(), "seconds_before": round(before, 1), "seconds": 0.0}
    _write(folder, content | {"planned": jobs, "jobs": []})


def announce(folder: Path, job: Job) -> None:
    """Prints on standard error that a job starts."""
    content = _load(folder)
    say(f"job {job.number} starts ({_done(content)}): {' '.join(job.own_overrides())}")


def record(folder: Path, end: JobEnd) -> None:
    """Adds how a job ended, and prints it on standard error."""
    content = _load(folder)
    content["jobs"].append(asdict(end))
    content["seconds"] = round(time.time() - content["began"], 1)
    _write(folder, content)
    took = f" after {end.seconds:.0f} s" if end.ended in (Ended.FINISHED, Ended.FAILED, Ended.STOPPED) else ""
    score = "" if end.objective is None else f", objective {end.objective:.3f}"
    say(f"job {end.job} {end.ended}{took}{score} ({_done(content)})")


def say(sentence: str) -> None:
    """Prints one line about the sweep on standard error."""
    print(f"sweep: {sentence}", file=sys.stderr, flush=True)


def ends(folder: Path) -> list[JobEnd]:
    """Returns the jobs of the last call in their order; empty if there is no sweep."""
    return sorted((JobEnd(**line) for line in _load(folder).get("jobs", [])), key=lambda end: end.job)


def _done(content: dict[str, Any]) -> str:
    planned = f" of {content['planned']}" if content.get("planned") else ""
    return f"{len(content['jobs'])}{planned} done"


def _load(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {}


def _write(folder: Path, content: dict[str, Any]) -> None:
    write_whole(folder / FILE, json.dumps(content, indent=1) + "\n")
