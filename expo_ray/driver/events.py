"""events.jsonl: what happened to a run beside its steps. Actors lost and replaced, checkpoints, resumes."""

import json
import sys
import time
from pathlib import Path
from typing import Any


class Events:
    """Appends to `<folder>/events.jsonl`, and tells what a user must know on standard error.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"

    def note(self, kind: str, sentence: str, tell: bool = True, **details: Any) -> None:
        """Writes one event.

        Args:
            kind: lost, replaced, restarted, resumed, skipped, checkpoint, changed, preempted.
            sentence: what happened.
            tell: also print it.
            details: numbers and names that a program wants to read.
        """
        line = {"time": round(time.time(), 3), "event": kind, "what": sentence} | details
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if tell:
            print(f"{kind}: {sentence}", file=sys.stderr, flush=True)
