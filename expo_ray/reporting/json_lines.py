"""Reads JSON Lines files that may still be growing: a torn or broken line is left out and counted."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class LineReader:
    """Iterates over a file's objects.

    Args:
        path: the file; an absent one has no lines.
        keys: what every object must have; one without is broken.
    """

    def __init__(self, path: Path, keys: tuple[str, ...] = ()) -> None:
        self.path, self.keys = path, keys
        self.torn = False
        """The file's last line has no end yet: it was being written."""
        self.broken: list[int] = []
        """Numbers, from 1, of complete lines that are no such object."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                value = _object(raw, self.keys)
                if value is not None:
                    yield value
                elif not raw.endswith(b"\n"):
                    self.torn = True
                elif raw.strip():
                    self.broken.append(number)

    def notes(self) -> list[str]:
        """What was left out, one sentence each, once the lines have been read."""
        found = [f"{self.path.name}: its last line is not complete yet and is left out"] if self.torn else []
        if self.broken:
            lines = ", ".join(map(str, self.broken[:5])) + (", ..." if len(self.broken) > 5 else "")
            found.append(f"{self.path.name}: {len(self.broken)} broken lines are left out (line {lines})")
        return found


def _object(raw: bytes, keys: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and all(key in value for key in keys) else None


def finite(value: Any) -> float | None:
    """A number that can be drawn; None for everything else (null, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
