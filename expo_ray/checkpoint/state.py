"""driver.json: what of a run's state is not in the learners."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from expo_ray.checkpoint.identity import Identity

STATE = "driver.json"
RECORDS = ("metrics.jsonl", "samples.jsonl", "batches.jsonl", "evaluations.jsonl", "proofs.jsonl")


@dataclass(frozen=True)
class DriverState:
    """The order of prompts, learning rate, beta and every sampler's seed are functions of `settings` and the step."""

    steps_done: int
    """Also the weight version."""
    algorithm: dict[str, Any]
    """What the algorithm remembers: kept explanations, pairs."""
    records: dict[str, int]
    """Record file -> its length in bytes after `steps_done` steps."""
    settings: dict[str, Any]
    """The run's configuration, flat."""
    identity: Identity

    def write(self, folder: Path) -> None:
        """Writes it into a checkpoint's folder."""
        (folder / STATE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, checkpoint: Path) -> "DriverState":
        """Reads it from a checkpoint that was found undamaged."""
        found = json.loads((checkpoint / STATE).read_text())
        return cls(**{**found, "identity": Identity(**found["identity"])})


def record_lengths(run_folder: Path) -> dict[str, int]:
    """The present length of each record file, in bytes."""
    return {name: path.stat().st_size for name in RECORDS if (path := run_folder / name).exists()}


def rewind(run_folder: Path, records: dict[str, int], source: Path | None = None) -> None:
    """Brings the run's record files to the given lengths; what follows is dropped, torn lines with it.

    Args:
        run_folder: the run's folder.
        records: file name -> bytes; a file that is not named is removed.
        source: the folder of the run to take them from; the same by default.
    """
    for name in RECORDS:
        path = (source or run_folder) / name
        kept = path.read_bytes()[: records[name]] if name in records and path.exists() else None
        if kept is None:
            (run_folder / name).unlink(missing_ok=True)
            continue
        aside = run_folder / f".{name}.partial"
        aside.write_bytes(kept)
        aside.replace(run_folder / name)


def set_aside(run_folder: Path) -> None:
    """Renames the records of a run that is started anew in its folder: metrics.jsonl.1 and so on."""
    for name in RECORDS:
        path = run_folder / name
        if path.exists():
            number = next(i for i in range(1, 10_000) if not (run_folder / f"{name}.{i}").exists())
            path.rename(run_folder / f"{name}.{number}")
