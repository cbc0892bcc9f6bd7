"""Reads problems from JSON Lines or the Hugging Face hub, or generates the toy task's, as conf/data says."""

import json
import logging
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from expo_ray.config.errors import DataError
from expo_ray.config.schema import DataConfig, VerifierConfig
from expo_ray.messages import Problem
from expo_ray.verifier.extract import boxed, hashed
from expo_ray.verifier.tasks import CHECKED, checked_golds

log = logging.getLogger(__name__)

TOY_PROBLEMS = {False: 4000, True: 500}
"""Number of the toy task's training (False) and held-out (True) problems; `max_problems` lowers the former."""
MOST_WITHOUT_ANSWER = 0.01
"""Share of the records that may lack a gold answer; they are left out. With more, the data is refused."""
UIDS = ("unique_id", "uid")
"""A record's keys that may name it."""
_SPLIT_SEED = 2507
"""Chooses the held-out share of a local file. It does not depend on `seed`, so that seeds can be compared."""
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_LEVEL = re.compile(r"(?:level\s*)?([1-5])", re.IGNORECASE)
_UNKNOWN_LEVEL = re.compile(r"(?:level\s*)?\?", re.IGNORECASE)


@dataclass(frozen=True)
class Record:
    """One record and its place: "FILE line N" or "DATA SET record N"."""

    where: str
    number: int
    fields: dict[str, Any]


class Problems:
    """A run's problems. Each file is read once, when its problems are first used.

    Args:
        data: conf/data. Levels are chosen by `levels` (training) or `eval_levels`; `max_problems` takes a seeded
            sample of the training problems.
        seed: seeds the sample, and the toy task's problems.
        verifier: what grades the answers; the gold answers are then checked, and repaired where that is plain.
    """

    def __init__(self, data: DataConfig, seed: int, verifier: VerifierConfig | None = None) -> None:
        self.data, self.seed, self.verifier = data, seed, verifier
        self.golds: list[str] = []
        """What the check of each loaded file's gold answers found, for the plan."""

    @cached_property
    def training(self) -> list[Problem]:
        """The problems to train on, in the order of their file.

        Raises:
            DataError: a file that is missing, empty, not JSON Lines or lacks a key; a hub that cannot be reached.
        """
        return self._load(held_out=False)

    @cached_property
    def held_out(self) -> list[Problem]:
        """The held-out problems: `eval_path`; else `held_out_share` of `path`; else the hub's `eval_split`.

        Raises:
            DataError: as for `training`.
        """
        return self._load(held_out=True)

    @cached_property
    def _own_file(self) -> list[Record]:
        """The records of `path`, which training and held-out problems may share."""
        return list(read_json_lines(Path(str(self.data.path)), "data.path"))

    def _load(self, held_out: bool) -> list[Problem]:
        data = self.data
        levels = data.eval_levels if held_out else data.levels
        if data.name == "toy" and data.path is None:
            return _toy(data, held_out, levels, self.seed)
        problems = _problems(self._records(held_out), data, bool(levels))
        chosen = [problem for problem in problems if not levels or problem.level in levels]
        if not chosen and problems and not held_out:
            seen = sorted({problem.level for problem in problems if problem.level is not None})
            raise DataError(f"data.levels={levels} leaves no problem: the data has levels {seen}")
        if data.max_problems and not held_out and len(chosen) > data.max_problems:
            kept = sorted(random.Random(self.seed).sample(range(len(chosen)), data.max_problems))
            chosen = [chosen[index] for index in kept]
        if self.verifier is None or self.verifier.name not in CHECKED or not chosen:
            return chosen
        golds = checked_golds(chosen, self.verifier)
        self.golds.append(golds.text())
        return golds.problems

    def _records(self, held_out: bool) -> list[Record]:
        data = self.data
        if held_out and data.eval_path is not None:
            return list(read_json_lines(Path(data.eval_path), "data.eval_path"))
        if data.path is not None:
            if data.eval_path is None and data.held_out_share > 0:
                return _share(self._own_file, data.held_out_share, held_out)
            return [] if held_out else self._own_file
        if data.hub is None:
            raise DataError(f"data={data.name} needs data.path=FILE, a file of JSON Lines")
        return list(_hub(data, data.eval_split if held_out else data.split))


def _toy(data: DataConfig, held_out: bool, levels: list[int], seed: int) -> list[Problem]:
    from expo_ray.world.running_totals import problems

    count = TOY_PROBLEMS[held_out]
    if data.max_problems and not held_out:
        count = min(count, data.max_problems)
    return problems("heldout" if held_out else "train", levels, count, seed)


def _share(records: list[Record], share: float, held_out: bool) -> list[Record]:
    """Divides one file into training and held-out records."""
    if len(records) < 2:
        return [] if held_out else records
    count = min(len(records) - 1, max(1, round(share * len(records))))
    kept_back = set(random.Random(_SPLIT_SEED).sample(range(len(records)), count))
    return [record for index, record in enumerate(records) if (index in kept_back) == held_out]


def read_json_lines(file: Path, key: str) -> Iterator[Record]:
    """Reads the objects of a JSON Lines file, skipping empty lines.

    Args:
        file: the file.
        key: the configuration key that names it, for messages.

    Raises:
        DataError: missing, empty, not UTF-8, or a line that is not a JSON object.
    """
    if not file.is_file():
        raise DataError(f"{key}={file} does not exist: give a file of JSON Lines (one JSON object per line)")
    empty = True
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    empty = False
                    yield Record(f"{file} line {number}", number, _object(line, f"{file} line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{key}={file} cannot be read as UTF-8 text ({error}): give a file of JSON Lines") from error
    if empty:
        raise DataError(f"{key}={file} is empty: give a file with one JSON object per line")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}): write one JSON object per line") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object but {type(value).__name__}: write one JSON object per line")
    return value


def _hub(data: DataConfig, split: str) -> Iterator[Record]:
    # The client would draw progress bars over the run's own progress on the terminal.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    remedy = "give a local file by data.path=FILE"
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"data.hub={data.hub} needs the package 'datasets', which is not installed: run make setup, or {remedy}"
        ) from error
    try:
        rows: Iterable[Any] = load_dataset(data.hub, data.hub_config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"data.hub={data.hub} split {split} cannot be loaded ({reason}): {remedy}") from error
    for number, row in enumerate(rows):
        yield Record(f"{data.hub} {split} record {number}", number, dict(row))


def _problems(records: list[Record], data: DataConfig, level_needed: bool) -> list[Problem]:
    """Returns the problems that have a gold answer, with unique uids.

    A few may lack an answer: MATH itself has two whose box is empty. A file with many such records is refused.
    """
    problems = _with_unique_uids([_problem(record, data, level_needed) for record in records], records)
    without = [record for record, problem in zip(records, problems, strict=True) if not problem.answers]
    if len(without) > MOST_WITHOUT_ANSWER * len(records):
        wanted = {"field": "nothing in it", "boxed": r"no \boxed{...} in it", "hashes": "no '#### answer' in it"}
        raise DataError(
            f"{without[0].where}: key '{_answer_key(without[0], data)}' has {wanted[data.answer_from]} "
            f"({len(without)} of {len(records)} records have no answer): "
            "fix the line, or set data.answer_key or data.answer_from"
        )
    if without:
        log.info("%d records without an answer are left out, first %s", len(without), without[0].where)
    return [problem for problem in problems if problem.answers]


def _with_unique_uids(problems: list[Problem], records: list[Record]) -> list[Problem]:
    """Appends the record's number to a uid that an earlier record has, and reports the first.

    Explanations, pairs and lengths are stored by uid: problems that share one would exchange them.
    """
    first: dict[str, Record] = {}
    repeated: list[tuple[Record, str]] = []
    unique = []
    for problem, record in zip(problems, records, strict=True):
        uid = problem.uid
        if uid in first:
            repeated.append((record, uid))
            while uid in first:
                uid = f"{uid}-{record.number}"
        first[uid] = record
        unique.append(replace(problem, uid=uid))
    if repeated:
        record, uid = repeated[0]
        print(
            f"{len(repeated)} problems repeat the uid of another, first {record.where} ('{uid}', as in "
            f"{first[uid].where}): their numbers are appended",
            file=sys.stderr,
        )
    return unique


def _problem(record: Record, data: DataConfig, level_needed: bool) -> Problem:
    fields = record.fields
    question = _text(record, data.question_key, "data.question_key")
    solution = fields.get(data.solution_key) if data.solution_key else None
    if solution is not None and not isinstance(solution, str):
        raise DataError(f"{record.where}: key '{data.solution_key}' is not a text")
    if solution and data.answer_from == "hashes":
        solution = _CALCULATOR.sub("", solution)
    uid = next((fields[key] for key in UIDS if key in fields), None)
    read = {data.question_key, _answer_key(record, data), data.solution_key, data.level_key, data.kind_key, *UIDS}
    return Problem(
        uid=str(uid) if uid is not None else f"{_source(record)}-{record.number}",
        question=question,
        answers=_answers(record, data),
        solution=solution or None,
        level=_level(record, data.level_key, level_needed),
        kind=str(fields.get(data.kind_key) or "") if data.kind_key else "",
        meta={key: _plain(value) for key, value in fields.items() if key not in read},
    )


def _plain(value: Any) -> Any:
    """A column's value as JSON could hold it, so that it can be sent to a grading process; dates become text."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _source(record: Record) -> str:
    return Path(record.where.split(" ")[0]).stem


def _lacks(record: Record, key: str, setting: str) -> DataError:
    there = ", ".join(list(record.fields)[:12]) or "none"
    return DataError(f"{record.where} lacks the key '{key}' (it has: {there}): fix the line or set {setting}")


def _text(record: Record, key: str, setting: str) -> str:
    if key not in record.fields:
        raise _lacks(record, key, setting)
    value = record.fields[key]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{record.where}: key '{key}' is not a text, or is empty: fix the line or set {setting}")
    return value


def _answer_key(record: Record, data: DataConfig) -> str:
    """The key to look for the answer in: the solution's, if the answer is boxed and has no key of its own."""
    if data.answer_from == "boxed" and data.answer_key not in record.fields and data.solution_key in record.fields:
        return str(data.solution_key)
    return data.answer_key


def _answers(record: Record, data: DataConfig) -> tuple[str, ...]:
    """Returns the gold answers, from one text or number or a list of them; empty if the record has none."""
    key = _answer_key(record, data)
    if data.answer_from == "hashes" or key != data.answer_key:
        text = _text(record, key, "data.answer_key")
        answer = hashed(text) if data.answer_from == "hashes" else boxed(text)
        return (answer,) if answer else ()
    if key not in record.fields:
        raise _lacks(record, key, "data.answer_key")
    value = record.fields[key]
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, bool) or not isinstance(each, str | int | float | None) for each in values):
        raise DataError(f"{record.where}: key '{key}' is {value!r:.60}: write a text, a number or a list of them")
    return tuple(text for each in values if each is not None and (text := str(each).strip()))


def _level(record: Record, key: str | None, needed: bool) -> int | None:
    """Reads a level from 1 to 5 written as 5, "5" or "Level 5"; None for "Level ?" and for no level."""
    value = record.fields.get(key) if key else None
    if value is None:
        if needed:
            raise DataError(f"{record.where} lacks the level key '{key}', which data.levels needs: set data.levels=[]")
        return None
    if found := _LEVEL.fullmatch(str(value).strip()):
        return int(found.group(1))
    if _UNKNOWN_LEVEL.fullmatch(str(value).strip()):
        return None
    raise DataError(
        f"{record.where}: key '{key}' is {value!r}, not a level from 1 to 5: fix the line or set data.level_key=null"
    )
