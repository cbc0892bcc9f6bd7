"""The files of a run folder: written whole or not at all, appended a line at a time, read while they are being written.

A run can be killed between any two system calls. Whatever a later run or a report reads goes through these functions.
The last one finds a file of a model.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces a file's content in one step: a reader sees the old or the new content, never part of it.

    Args:
        path: the file; its folder must exist.
        content: bytes, or text that is written as UTF-8.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    # Renaming is atomic only within one file system, so the partial file is in the same folder.
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def append_lines(path: Path, objects: Iterable[dict[str, Any]], flush_to_disk: bool = False) -> None:
    """Appends one JSON line for each object, in a single write; NaN and infinity become null.

    Args:
        path: the file; it is made if missing. If its last line has no end (its writer was killed), that line is
            ended first, so that it spoils none of the new ones.
        objects: the lines.
        flush_to_disk: return only when the lines would survive a loss of power.

    Raises:
        OSError: the file cannot be written.
    """
    text = "".join(json.dumps(finite_or_null(line), ensure_ascii=False, allow_nan=False) + "\n" for line in objects)
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        left = memoryview(text.encode())
        while left:  # an unbuffered write may take only a part (a disk that is nearly full)
            left = left[file.write(left) :]
        if flush_to_disk:
            os.fsync(file.fileno())


def finite_or_null(value: Any) -> Any:
    """The same value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite_or_null(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class JsonLines:
    """Iterates over the objects of a JSON Lines file that may still be growing, or whose writer was killed.

    A torn last line and broken lines are left out; `torn` and `broken` say so once the lines have been read.

    Args:
        path: the file; an absent one has no lines.
        keys: keys that every object must have; a line without one of them is broken.
    """

    def __init__(self, path: Path, keys: tuple[str, ...] = ()) -> None:
        self.path, self.keys = path, keys
        self.torn = False
        """Whether the last line was still being written."""
        self.broken: list[int] = []
        """Numbers, from 1, of complete lines that hold no such object."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.torn, self.broken = False, []
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
        """What was left out, one sentence each."""
        found = [f"{self.path.name}: its last line is not complete yet and is left out"] if self.torn else []
        if self.broken:
            lines = ", ".join(map(str, self.broken[:5])) + (", ..." if len(self.broken) > 5 else "")
            found.append(f"{self.path.name}: {len(self.broken)} broken lines are left out (line {lines})")
        return found


def read_lines(path: Path, keys: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """All objects of a run's own record, without a torn last line; empty where the file is absent.

    Raises:
        ValueError: a complete line is broken, so the record cannot be relied on.
    """
    lines = JsonLines(path, keys)
    found = list(lines)
    if lines.broken:
        raise ValueError(f"{path} line {lines.broken[0]} is not a JSON object with {', '.join(keys) or 'any keys'}")
    return found


def read_summary(run_folder: Path) -> dict[str, Any]:
    """A run's summary.json; empty while the run has not ended.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        text = (run_folder / "summary.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"summary.json: not complete ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"summary.json: not an object but {type(found).__name__}")
    return found


def model_file(model_path: str, name: str, fetch: bool = False) -> Path | None:
    """Finds a file of a model, such as its generation_config.json, in its folder or in the cache of the hub.

    Args:
        model_path: a folder or a hub id.
        name: the file's name.
        fetch: also ask the hub.

    Returns:
        The file; None if the model has none.
    """
    if (folder := Path(model_path)).is_dir() or not HUB_ID.fullmatch(model_path):
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for cached in (True, False) if fetch else (True,):
        try:
            return Path(hf_hub_download(model_path, name, local_files_only=cached))
        except (EntryNotFoundError, OSError):  # it has none, or the hub cannot be asked: the model is in the cache
            continue
    return None


def _object(raw: bytes, keys: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and all(key in value for key in keys) else None
