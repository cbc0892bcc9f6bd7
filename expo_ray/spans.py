"""Who did what, and when: each process appends its spans to a file, and trace.json puts all on one time line.

The form is the Trace Event Format, which https://ui.perfetto.dev and chrome://tracing open.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = "spans"
_file: Path | None = None


def open_spans(log_folder: str | Path, name: str) -> None:
    """From now on this process's spans go to `<log_folder>/spans/<name>.jsonl`."""
    global _file
    path = Path(log_folder) / FOLDER / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    _file = path


@contextmanager
def span(name: str, **about: float | str) -> Iterator[None]:
    """Writes down how long what is inside took. Without `open_spans` nothing is written.

    Args:
        name: what is done.
        about: shown beside it.
    """
    began, clock = time.time(), time.perf_counter()
    try:
        yield
    finally:
        if _file is not None:
            lane = threading.current_thread().name
            line = {"name": name, "began": began, "seconds": time.perf_counter() - clock, "lane": lane, "about": about}
            with _file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def write_trace(run_folder: Path) -> Path | None:
    """Puts the spans of all processes of a run into its trace.json, also while it goes on.

    A process is shown under its actor's name, with a row for each of its threads. Clocks of several nodes are taken
    as they are.

    Returns:
        The file; None where the run has no spans.
    """
    events: list[dict[str, Any]] = []
    files = sorted((run_folder / "logs" / FOLDER).glob("*.jsonl"))
    for number, path in enumerate(files, start=1):
        events.append({"name": "process_name", "ph": "M", "pid": number, "args": {"name": path.stem}})
        lanes: dict[str, int] = {}
        for line in _lines(path):
            lane = lanes.setdefault(line["lane"], len(lanes) + 1)
            events.append(
                {
                    "name": line["name"],
                    "ph": "X",
                    "ts": round(line["began"] * 1e6),
                    "dur": round(line["seconds"] * 1e6),
                    "pid": number,
                    "tid": lane,
                    "args": line["about"],
                }
            )
        events += [
            {"name": "thread_name", "ph": "M", "pid": number, "tid": lane, "args": {"name": name}}
            for name, lane in lanes.items()
        ]
    if not files:
        return None
    aside = run_folder / ".trace.json.partial"
    aside.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
    os.replace(aside, run_folder / "trace.json")
    return run_folder / "trace.json"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """A process that was killed may have left half a line at the end."""
    for text in path.read_text(encoding="utf-8").splitlines():
        if text.endswith("}"):
            yield json.loads(text)
