"""Who did what, and when: each process appends its spans to its own file; trace.json puts them on one time line."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expo_ray.files import JsonLines, append_lines, write_whole

FOLDER = "spans"
_file: Path | None = None


def open_spans(log_folder: str | Path, name: str) -> None:
    """Sends this process's spans to `<log_folder>/spans/<name>.jsonl` from now on."""
    global _file
    path = Path(log_folder) / FOLDER / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    _file = path


@contextmanager
def span(name: str, **about: float | str) -> Iterator[None]:
    """Records how long the body took, also when it raises. Does nothing before `open_spans`.

    Args:
        name: what is done.
        about: details that the trace viewer shows.
    """
    began, clock = time.time(), time.perf_counter()
    try:
        yield
    finally:
        lane = threading.current_thread().name
        _write({"name": name, "began": began, "seconds": time.perf_counter() - clock, "lane": lane, "about": about})


def _write(line: dict[str, Any]) -> None:
    """A full disk may cost the trace, but never the work that is traced."""
    global _file
    if _file is None:
        return
    try:
        append_lines(_file, [line])
    except OSError as error:
        print(f"spans: {_file} cannot be written ({error}); this process is traced no further", file=sys.stderr)
        _file = None


def write_trace(run_folder: Path) -> Path | None:
    """Writes the spans of all processes of a run to its trace.json, also during the run.

    The file is in the Trace Event Format; https://ui.perfetto.dev and chrome://tracing open it. A process is shown
    under its actor's name, with a row for each of its threads. Clocks of several nodes are not aligned.

    Returns:
        The file; None where the run has no spans, or the file cannot be written (reported on standard error).
    """
    files = sorted((run_folder / "logs" / FOLDER).glob("*.jsonl"))
    if not files:
        return None
    events = [event for number, path in enumerate(files, start=1) for event in _events(path, number)]
    trace = run_folder / "trace.json"
    try:
        write_whole(trace, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    except OSError as error:  # written at a run's end, whose own error must not be hidden
        print(f"trace: {trace} cannot be written ({error})", file=sys.stderr)
        return None
    return trace


def _events(path: Path, process: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    lanes: dict[str, int] = {}
    for line in JsonLines(path, keys=("name", "began", "seconds", "lane", "about")):
        times = {"ts": round(line["began"] * 1e6), "dur": round(line["seconds"] * 1e6)}
        lane = lanes.setdefault(line["lane"], len(lanes) + 1)
        found.append({"name": line["name"], "ph": "X", "pid": process, "tid": lane, "args": line["about"], **times})
    named = {"ph": "M", "pid": process}
    rows = [{"name": "thread_name", "tid": lane, "args": {"name": name}, **named} for name, lane in lanes.items()]
    return [{"name": "process_name", "args": {"name": path.stem}, **named}, *found, *rows]
