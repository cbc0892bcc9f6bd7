"""Who did what, and when: each process appends its spans to a file of its own (expo_ray.reporting.trace reads them)."""

import json
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
        if _file is not None:
            lane = threading.current_thread().name
            line = {"name": name, "began": began, "seconds": time.perf_counter() - clock, "lane": lane, "about": about}
            with _file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
