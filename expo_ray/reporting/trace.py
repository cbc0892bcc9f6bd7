"""trace.json: the spans of all of a run's processes on one time line, in the Trace Event Format.

https://ui.perfetto.dev and chrome://tracing open it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from expo_ray.reporting.runs import LineReader
from expo_ray.runtime.spans import FOLDER


def write_trace(run_folder: Path) -> Path | None:
    """Puts the spans of all processes of a run into its trace.json, also while it goes on.

    A process is shown under its actor's name, with a row for each of its threads. Clocks of several nodes are taken
    as they are.

    Returns:
        The file; None where the run has no spans, or the file cannot be written (said on standard error).
    """
    events: list[dict[str, Any]] = []
    files = sorted((run_folder / "logs" / FOLDER).glob("*.jsonl"))
    for number, path in enumerate(files, start=1):
        events += _events(path, number)
    if not files:
        return None
    aside = run_folder / ".trace.json.partial"
    try:
        aside.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
        os.replace(aside, run_folder / "trace.json")
    except OSError as error:  # it is written at a run's end, whose own error must not be hidden
        print(f"trace: {run_folder / 'trace.json'} cannot be written ({error})", file=sys.stderr)
        return None
    return run_folder / "trace.json"


def _events(path: Path, process: int) -> list[dict[str, Any]]:
    """A process that was killed may have left half a line at the end, which is left out."""
    found: list[dict[str, Any]] = []
    lanes: dict[str, int] = {}
    for line in LineReader(path, keys=("name", "began", "seconds", "lane", "about")):
        times = {"ts": round(line["began"] * 1e6), "dur": round(line["seconds"] * 1e6)}
        lane = lanes.setdefault(line["lane"], len(lanes) + 1)
        found.append({"name": line["name"], "ph": "X", "pid": process, "tid": lane, "args": line["about"], **times})
    named = {"ph": "M", "pid": process}
    rows = [{"name": "thread_name", "tid": lane, "args": {"name": name}, **named} for name, lane in lanes.items()]
    return [{"name": "process_name", "args": {"name": path.stem}, **named}, *found, *rows]
