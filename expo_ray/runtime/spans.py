"""Who did what, and when: each process appends its spans to a file of its own (expo_ray.reporting.trace reads them)."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        lane = threading.current_thread().name
        _write({"name": name, "began": began, "seconds": time.perf_counter() - clock, "lane": lane, "about": about})


def _write(line: dict[str, object]) -> None:
    """A disk that is full must cost the trace, never the work that is traced."""
    global _file
    if _file is None:
        return
    try:
        with _file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        print(f"spans: {_file} cannot be written ({error}); this process is traced no further", file=sys.stderr)
        _file = None
