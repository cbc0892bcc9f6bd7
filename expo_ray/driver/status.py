"""status.json: what a run is doing at this moment, and where its actors are."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from expo_ray.actor_process import Place


class Status:
    """Rewrites `<folder>/status.json` at each change of phase, by renaming, so that a reader never sees half of it.

    Args:
        folder: the run folder.
        places: gives the actors' places by name.
    """

    def __init__(self, folder: Path, places: Callable[[], dict[str, Place]]) -> None:
        self.path, self._places = folder / "status.json", places
        self.step = -1
        self.current = "starting"

    def enter(self, phase: str) -> str:
        """Names the phase that begins now; returns the one before."""
        before, self.current = self.current, phase
        self._write()
        return before

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Names a phase for as long as it is entered."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def _write(self) -> None:
        actors = {name: asdict(place) for name, place in self._places().items()}
        found = {"step": self.step, "phase": self.current, "since": time.time(), "driver": os.getpid()}
        aside = self.path.with_name(".status.partial")
        aside.write_text(json.dumps(found | {"actors": actors}))
        os.replace(aside, self.path)
