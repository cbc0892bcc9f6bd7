"""status.json, what a run is doing now, and events.jsonl, what happened to it: lost actors, checkpoints, resumes."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expo_ray.files import append_lines, write_whole
from expo_ray.runtime.process import Place


class Status:
    """Rewrites `<folder>/status.json` at each change of phase.

    Args:
        folder: the run folder.
        places: returns the actors' places by name.
    """

    def __init__(self, folder: Path, places: Callable[[], dict[str, Place]]) -> None:
        self.path, self._places = folder / "status.json", places
        self.step = -1
        self.current = "starting"

    def enter(self, phase: str) -> str:
        """Sets the phase; returns the previous one."""
        before, self.current = self.current, phase
        self._write()
        return before

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Sets the phase for the body, then restores the previous one."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def _write(self) -> None:
        actors = {name: asdict(place) for name, place in self._places().items()}
        found = {"step": self.step, "phase": self.current, "since": time.time(), "driver": os.getpid()}
        write_whole(self.path, json.dumps(found | {"actors": actors}))


class Events:
    """Appends to `<folder>/events.jsonl` and prints what a user should see on standard error.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"

    def note(self, kind: str, sentence: str, show: bool = True, **details: Any) -> None:
        """Appends one event.

        Args:
            kind: lost, replaced, restarted, resumed, skipped, checkpoint, changed, preempted,
                reused.
            sentence: what happened.
            show: also print it.
            details: numbers and names for programs that read the file.
        """
        line = {"time": round(time.time(), 3), "event": kind, "what": sentence} | details
        append_lines(self.path, [line])
        if show:
            print(f"{kind}: {sentence}", file=sys.stderr, flush=True)
