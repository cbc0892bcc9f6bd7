"""The manifest of a checkpoint: manifest.json, written last, lists every file with size and SHA-256."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 2
MANIFEST = "manifest.json"
NOT_LISTED = (MANIFEST, "policy/README.md")
"""The model card is written again once the run's last evaluation is known, and its owner may edit it."""
THREADS = 8
"""Files hashed at once; hashing releases Python's global lock."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of one checkpoint."""

    steps_done: int
    score: float | None
    """pass@k on the held-out problems at that step; None if it was not measured."""
    files: dict[str, dict[str, Any]]
    """Path inside the folder -> bytes, sha256."""

    @property
    def bytes(self) -> int:
        """Size of the whole checkpoint."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


def seal(folder: Path, steps_done: int, score: float | None) -> Manifest:
    """Flushes every file of `folder` to the disk, then writes the manifest.

    Raises:
        OSError: something could not be read or written.
    """
    manifest = Manifest(steps_done, score, _digests(folder))
    path = folder / MANIFEST
    path.write_text(
        json.dumps({"format": FORMAT, "steps_done": steps_done, "score": score, "files": manifest.files}, indent=1)
    )
    _to_disk(path)
    _to_disk(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest without checking the files.

    Raises:
        ValueError: this version cannot read it; the message says why.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text())
        if found["format"] != FORMAT:
            raise ValueError(f"it has format {found['format']}, this version reads {FORMAT}")
        return Manifest(int(found["steps_done"]), found["score"], dict(found["files"]))
    except FileNotFoundError as error:
        raise ValueError(f"it has no {MANIFEST}, so it is incomplete") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read ({error!r})") from error


def damage(folder: Path) -> str | None:
    """Returns why a checkpoint must not be loaded; None if every file is as it was written."""
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return str(error)
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
    found = _digests(folder)
    return next(
        (
            f"{name} was changed: its SHA-256 is not the one in {MANIFEST}"
            for name, entry in manifest.files.items()
            if found[name]["sha256"] != entry["sha256"]
        ),
        None,
    )


def _digests(folder: Path) -> dict[str, dict[str, Any]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    paths = sorted(path for path in files if str(path.relative_to(folder)) not in NOT_LISTED)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(_digest, paths))
    return {str(path.relative_to(folder)): entry for path, entry in zip(paths, found, strict=True)}


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest}


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
