"""Reads records as people have them: JSON Lines, JSON, CSV, TSV, Parquet, Arrow, data sets on disk or of the hub.

Text may have a byte-order mark (UTF-8 or UTF-16), every file may be compressed with gzip, zstd or bzip2. Each record
knows its place, so that a message can name it.
"""

import bz2
import csv
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from expo_ray.config.errors import DataError

FORMATS = {
    ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh"}
"""Suffix -> the bytes that a compressed file begins with; the bytes decide."""
MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow"}
KINDS = "JSON Lines, JSON, CSV, TSV, Parquet or Arrow"
_BATCH = 1024
_SPLITS = ("train", "test", "validation", "valid", "dev", "eval")


@dataclass(frozen=True, slots=True)
class Record:
    """One record and its place."""

    file: str
    """The file's path, or a data set's name and split."""
    unit: str
    """What `number` counts in the file: line, row or record."""
    number: int
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        """The place in words: "FILE line N"."""
        return f"{self.file} {self.unit} {self.number}"


def read_records(path: str, key: str, bad: list[str] | None = None) -> Iterator[Record]:
    """Reads the records of a file, of all files of a folder or a glob in the order of their names, or of a data set
    that was saved with `save_to_disk`.

    Args:
        path: the file, folder or glob.
        key: the configuration key that names it, for messages.
        bad: takes a sentence for each line of JSON Lines that is not an object; None: the first one is raised.

    Raises:
        DataError: missing, empty, of no known format, or damaged; one sentence with the file and the line or row.
    """
    empty = True
    folder = Path(path)
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        files: Iterable[Iterator[Record]] = [read_data_set(path, None, "", key)]
    else:
        files = (_read_file(file, key, bad) for file in files_of(path, key))
    for records in files:
        for record in records:
            empty = False
            yield record
    if empty and not bad:
        raise DataError(f"{key}={path} is empty: give a file with one record a line, such as one JSON object per line")


def files_of(path: str, key: str) -> list[Path]:
    """The files that a path names, sorted.

    Raises:
        DataError: there is none, or a folder holds several splits or a `DatasetDict`.
    """
    file = Path(path)
    if file.exists() and not file.is_dir():  # also a pipe
        return [file]
    if not file.exists() and glob.has_magic(path):
        found = sorted(Path(name) for name in glob.glob(path, recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"{key}={path} matches no file: give a file, a folder or a glob of {KINDS}")
        return found
    if not file.is_dir():
        raise DataError(f"{key}={path} does not exist: give a file, a folder or a glob of {KINDS}")
    if (file / "dataset_dict.json").is_file():
        raise DataError(f"{key}={path} is a saved data set with splits: give data.hub={path} and data.split instead")
    found = sorted(each for each in file.rglob("*") if each.is_file() and _format(each))
    found = [each for each in found if not any(part.startswith(".") for part in each.relative_to(file).parts)]
    if not found:
        raise DataError(f"{key}={path} is a folder without such a file: give a folder with {KINDS}")
    places = [each.relative_to(file) for each in found]
    splits = {split: place for place in places if (split := _split_of(place)) is not None}
    if len(splits) > 1:
        names = " and ".join(map(str, splits.values()))
        raise DataError(f"{key}={path} holds several splits ({names}): give data.hub={path}, or a glob of one split")
    return found


@cache
def stem(file: str) -> str:
    """A file's name without its suffixes; the last part of a data set's name."""
    path = Path(file)
    path = path.with_suffix("") if path.suffix in COMPRESSED else path
    return path.stem if path.suffix in FORMATS else Path(path.name.split(" ")[0]).stem


def read_data_set(name: str, config: str | None, split: str, key: str) -> Iterator[Record]:
    """Reads one split of a data set of the hub, of a local folder in the hub's form, or of a saved one.

    Args:
        name: an id of the hub, or a folder.
        config: its configuration.
        split: the split; "" for a saved data set without splits.
        key: the configuration key that names it.

    Raises:
        DataError: it cannot be loaded, or has no such split.
    """
    # The client would draw progress bars over the run's own progress on the terminal.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    remedy = "give a local file by data.path=FILE"
    try:
        from datasets import DatasetDict, load_dataset, load_from_disk
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise DataError(
            f"{key}={name} needs the package 'datasets', which is not installed: run make setup, or {remedy}"
        ) from error
    place = f"{name} {split}".strip()
    try:
        if any((Path(name) / each).is_file() for each in ("dataset_dict.json", "state.json")):
            found = load_from_disk(name)
            if isinstance(found, DatasetDict):
                if split not in found:
                    raise ValueError(f"it has the splits {', '.join(found)}")
                found = found[split]
            elif split:  # training and held-out problems would be the same
                raise ValueError(f"it has no splits, so give data.path={name}")
        else:
            found = load_dataset(name, config, split=split or "train")
        number = 0
        for table in found.with_format("arrow").iter(_BATCH):
            for row in table.to_pylist():
                number += 1
                yield Record(place, "record", number, row)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{key}={name} split {split} cannot be loaded ({_first(error)}): {remedy}") from error


def _format(file: Path) -> str | None:
    """The format that a file's name states; None if it states none."""
    return FORMATS.get(_suffix(file))


def _split_of(place: Path) -> str | None:
    """The split that a file's name states, else the nearest of its folders."""
    parts = [part.lower().replace("-", ".").replace("_", ".").split(".") for part in reversed(place.parts)]
    return next((split for words in parts for split in _SPLITS if split in words), None)


def _read_file(file: Path, key: str, bad: list[str] | None) -> Iterator[Record]:
    with _faults(file, key), _opened(file) as stream:
        head = stream.peek(16)
        kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), _format(file) or "lines")
        if kind in ("parquet", "arrow"):
            rows = _parquet(stream) if kind == "parquet" else _arrow(stream, head)
            for number, fields in enumerate(rows, start=1):
                yield Record(str(file), "row", number, fields)
            return
        encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        if kind == "lines" and encoding != "utf-16":
            yield from _lines(stream, str(file), bad)
            return
        with io.TextIOWrapper(stream, encoding, newline="" if kind.endswith("sv") else None) as text:
            if kind == "lines":
                yield from _lines(text, str(file), bad)
            else:
                yield from _json(text, str(file), bad) if kind == "json" else _table(text, str(file))


@contextmanager
def _faults(file: Path, key: str) -> Iterator[None]:
    """Turns what a damaged file raises into one sentence."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{key}={file} cannot be read as UTF-8 text ({error}): give {KINDS}") from error
    except (OSError, EOFError, zlib.error, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{key}={file} cannot be read ({_first(error)}): give {KINDS}") from error


@contextmanager
def _opened(file: Path) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed."""
    with file.open("rb") as plain:
        head = plain.peek(4)
        suffix = next((suffix for suffix, magic in COMPRESSED.items() if head.startswith(magic)), "")
        if not suffix:
            yield plain
        elif suffix == ".zst":
            import pyarrow

            with pyarrow.CompressedInputStream(pyarrow.PythonFile(plain), "zstd") as stream:
                yield io.BufferedReader(stream)
        else:
            with gzip.GzipFile(fileobj=plain) if suffix == ".gz" else bz2.BZ2File(plain) as stream:
                yield io.BufferedReader(stream)


def _lines(lines: Iterable[str | bytes], file: str, bad: list[str] | None) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = _object(line, f"{file} line {number}")
        except DataError as error:
            if bad is None:
                raise
            bad.append(str(error))
            continue
        yield Record(file, "line", number, fields)


def _object(line: str | bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig") if isinstance(line, bytes) else line)
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text ({error}): give {KINDS}") from error
    except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
        raise DataError(f"{where} is not JSON ({error}): write one JSON object per line") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object but {type(value).__name__}: write one JSON object per line")
    return value


def _json(text: IO[str], file: str, bad: list[str] | None) -> Iterator[Record]:
    """An array of objects, an object with one list of objects, one object, or JSON Lines under this name."""
    whole = text.read()
    if not whole.strip():
        return
    try:
        value = json.loads(whole)
    except RecursionError as error:
        raise DataError(f"{file} is not JSON ({error}): give {KINDS}") from error
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise DataError(f"{file} is not JSON ({error}): give {KINDS}") from error
        yield from _lines(io.StringIO(whole), file, bad)
        return
    if isinstance(value, dict):
        lists = {name: each for name, each in value.items() if each and isinstance(each, list) and _objects(each)}
        if len(lists) > 1:
            raise DataError(f"{file} holds several lists of records ({', '.join(lists)}): keep one of them in the file")
        value = next(iter(lists.values()), [value])
    if not isinstance(value, list):
        raise DataError(f"{file} is {type(value).__name__}, not an array of JSON objects: give {KINDS}")
    for number, each in enumerate(value, start=1):
        if not isinstance(each, dict):
            raise DataError(f"{file} record {number} is not a JSON object but {type(each).__name__}: write an object")
        yield Record(file, "record", number, each)


def _objects(values: list[Any]) -> bool:
    # A record's own list of messages is no list of records.
    return all(isinstance(each, dict) for each in values) and not all(
        {"role", "content"} <= each.keys() for each in values
    )


def _table(text: IO[str], file: str) -> Iterator[Record]:
    """CSV or TSV with a header. Every value is a text as it stands there; an empty one counts as absent (None)."""
    csv.field_size_limit(2**31 - 1)
    tabs = _suffix(Path(file)) == ".tsv"
    rows = csv.reader(text, delimiter="\t" if tabs else ",", strict=True)
    names: list[str] | None = None
    while True:
        start = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{file} line {start} is not {'TSV' if tabs else 'CSV'} ({error}): fix the line") from error
        if row is None:
            return
        if not row:
            continue
        if names is None:
            names = row
            if len(set(names)) < len(names) or not all(name.strip() for name in names):
                raise DataError(f"{file} line {start}: its column names {names} must differ and not be empty: fix them")
            continue
        if len(row) != len(names):
            raise DataError(f"{file} line {start} has {len(row)} values for {len(names)} columns: fix the line")
        yield Record(file, "line", start, {n: v or None for n, v in zip(names, row, strict=True)})


def _suffix(file: Path) -> str:
    """The suffix that states a file's format, without that of its compression."""
    return (file.with_suffix("") if file.suffix in COMPRESSED else file).suffix.lower()


def _parquet(stream: io.BufferedReader) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet  # it comes with datasets

    for batch in pyarrow.parquet.ParquetFile(_seekable(stream)).iter_batches(_BATCH):
        yield from batch.to_pylist()


def _arrow(stream: io.BufferedReader, head: bytes) -> Iterator[dict[str, Any]]:
    import pyarrow.ipc

    if head.startswith(b"ARROW1"):
        file = pyarrow.ipc.open_file(_seekable(stream))
        batches = (file.get_batch(index) for index in range(file.num_record_batches))
    else:
        batches = iter(pyarrow.ipc.open_stream(stream))
    for batch in batches:
        yield from batch.to_pylist()


def _seekable(stream: io.BufferedReader) -> IO[bytes]:
    return stream if isinstance(stream.raw, io.FileIO) else io.BytesIO(stream.read())


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
