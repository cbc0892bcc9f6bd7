"""One record becomes a problem: which of its columns hold what, and what is a fault."""

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from expo_ray.config.errors import DataError
from expo_ray.config.schema import DataConfig
from expo_ray.data.formats import Record, stem
from expo_ray.messages import Problem
from expo_ray.verifier.extract import boxed, hashed
from expo_ray.verifier.tasks import task_problem

UIDS = ("unique_id", "uid")
"""A record's keys that may name it, without `data.uid_key`."""
QUESTIONS = {
    "verl": ("prompt",),
    "openrlhf": ("context_messages", "input", "prompt"),
    "trl": ("prompt",),
    "plain": ("problem", "question"),
}
"""Preset -> columns that may hold the question, the first one that a record has."""
ANSWERS = {
    "verl": ("reward_model.ground_truth",),
    "openrlhf": ("label",),
    "trl": ("answer", "ground_truth", "solution"),
    "plain": ("answer", "solution"),
}
KINDS = ("type", "subject", "kind", "ability", "data_source")
USUAL: dict[str, tuple[str | None, ...]] = {
    "question_key": ("problem", "question"), "answer_key": ("answer",), "answer_from": ("field",),
    "solution_key": ("solution", None), "level_key": ("level", None), "kind_key": ("type", None),
}  # fmt: skip
"""Values of the keys of `data` that a preset replaces; another value was chosen, and stays."""
SOURCE = "source"
"""`data.name` of an entry of `data.sources`."""
_ROLES = ("system", "user", "assistant")
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_LEVEL = re.compile(r"(?:level\s*)?([1-5])", re.IGNORECASE)
_UNKNOWN_LEVEL = re.compile(r"(?:level\s*)?\?", re.IGNORECASE)
_ABSENT = object()


def with_preset(data: DataConfig, first: Record) -> tuple[DataConfig, str]:
    """Chooses the columns by `data.preset`.

    Args:
        data: conf/data.
        first: the first record; its columns decide between the names that a preset knows.

    Returns:
        The settings with the preset's keys, and a line that says what is taken ("" without a preset).

    Raises:
        DataError: the record has no columns of the preset.
    """
    if data.preset == "none":
        return data, ""
    fields = first.fields
    names = [data.preset] if data.preset != "auto" else list(QUESTIONS)
    fits = (name for name in names if _first_of(fields, QUESTIONS[name]) and _first_of(fields, ANSWERS[name]))
    kept = {key: value for key, usual in USUAL.items() if (value := getattr(data, key)) not in usual}
    name = next(fits, None)
    if name is None and not kept.keys() >= {"question_key", "answer_key"}:
        tried = " or ".join(f"{'/'.join(QUESTIONS[each])} with {'/'.join(ANSWERS[each])}" for each in names)
        raise DataError(
            f"{first.where}: data.preset={data.preset} looks for {tried} (it has: {_columns(fields)}): "
            "set data.preset=none, data.question_key and data.answer_key"
        )
    taken = replace(data, **(_found(fields, name) if name else {}) | kept)
    form = {"field": "", "boxed": " (its box)", "hashes": " (after ####)"}[taken.answer_from]
    parts = [f"question {taken.question_key}", f"answer {taken.answer_key}{form}"]
    parts += [f"{what} {key}" for what in ("solution", "level", "kind") if (key := getattr(taken, f"{what}_key"))]
    return taken, f"{stem(first.file)}: {name or 'your own'} columns: {', '.join(parts)}"


def _found(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """The keys of `data` for a record with a preset's columns."""
    answer_key = str(_first_of(fields, ANSWERS[name]))
    answer, solution = value_at(fields, answer_key), fields.get("solution")
    form = "hashes" if isinstance(answer, str) and "####" in answer else "field"
    if answer_key == "solution" and isinstance(answer, str) and boxed(answer):
        form = "boxed"
    solves = form == "hashes" or (answer_key == "solution" and form == "boxed")
    level = fields.get("level")
    return {
        "question_key": _first_of(fields, QUESTIONS[name]),
        "answer_key": answer_key,
        "answer_from": form,
        "solution_key": answer_key if solves else "solution" if _is_other_text(solution, answer_key) else None,
        "level_key": "level" if level is not None and _LEVEL.fullmatch(str(level).strip()) else None,
        "kind_key": next((key for key in KINDS if isinstance(fields.get(key), str)), None),
    }


def _is_other_text(solution: Any, answer_key: str) -> bool:
    return isinstance(solution, str) and answer_key != "solution"


def _first_of(fields: dict[str, Any], keys: Iterable[str]) -> str | None:
    return next((key for key in keys if value_at(fields, key, None) is not None), None)


def value_at(fields: dict[str, Any], key: str, absent: Any = _ABSENT) -> Any:
    """The value of a key; "a.b" is also the key b of the object under a. `absent` where there is none."""
    if key in fields:
        return fields[key]
    value: Any = fields
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return absent
        value = value[part]
    return value


def problem_of(record: Record, data: DataConfig, level_needed: bool) -> Problem:
    """The record's problem; its `answers` are empty if the record has no gold answer.

    Args:
        record: the record.
        data: the keys of its columns.
        level_needed: `data.levels` chooses by the level, so a record without one is a fault.

    Raises:
        DataError: one sentence with file, line or row, key and remedy.
    """
    question, turns = _question(record, data.question_key)
    solution = value_at(record.fields, data.solution_key, None) if data.solution_key else None
    if solution is not None and not isinstance(solution, str):
        raise DataError(f"{record.where}: key '{data.solution_key}' is not a text: fix it or set data.solution_key")
    solution = _sound(record, str(data.solution_key), solution) if solution else None
    if solution and data.answer_from == "hashes":
        solution = _CALCULATOR.sub("", solution)
    uids = (data.uid_key,) if data.uid_key else UIDS
    uid = next((value for key in uids if (value := value_at(record.fields, key, None)) is not None), None)
    if data.uid_key and uid is None:
        raise _lacks(record, data.uid_key, "data.uid_key")
    kind = value_at(record.fields, data.kind_key, None) if data.kind_key else None
    key = answer_key(record, data)
    read = {data.question_key, key, data.solution_key, data.level_key, data.kind_key}
    if data.preset != "none" or data.name == SOURCE:  # only the record itself says by which name a column was read
        read = set()
    return Problem(
        uid=_sound(record, "uid", str(uid)) if uid is not None else f"{stem(record.file)}-{record.number}",
        question=question,
        turns=turns,
        answers=_answers(record, data),
        solution=solution or None,
        level=_level(record, data.level_key, level_needed),
        kind=_sound(record, str(data.kind_key), str(kind)) if kind else "",
        task=_task(record, data),
        meta={name: plain(value) for name, value in record.fields.items() if name not in read},
    )


def _task(record: Record, data: DataConfig) -> str:
    """The verifier task that the record names; empty if it names none."""
    name = value_at(record.fields, data.verifier_key, None) if data.verifier_key else None
    if name is not None and (problem := task_problem(str(name))):
        key = f"key '{data.verifier_key}'"
        raise DataError(f"{record.where}: {problem.replace('verifier.name', key, 1)}")
    return "" if name is None else str(name)


def fingerprint(problem: Problem) -> str:
    """Names a problem by what it asks, wherever it was read from (16 hexadecimal digits)."""
    return hashlib.sha256(repr((problem.question, problem.turns)).encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """A column's value as JSON could hold it, so that it can be sent to a grading process; dates become text."""
    if value is None or isinstance(value, (str, int, float)):  # a tuple: twice as fast as a union, for each value
        return value
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else str(value)


def _sound(record: Record, key: str, text: str) -> str:
    """The text, unless it holds half of a surrogate pair, which no tokenizer and no UTF-8 file can take."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = f"\\u{ord(text[error.start]):04x}"
            raise DataError(
                f"{record.where}: key '{key}' has half of a surrogate pair ({code}) at character {error.start + 1}, "
                "which is no text: write the whole character or take it out"
            ) from error
    return text


def _columns(fields: dict[str, Any]) -> str:
    return ", ".join(map(str, list(fields)[:12])) or "none"


def _lacks(record: Record, key: str, setting: str) -> DataError:
    return DataError(
        f"{record.where} lacks the key '{key}' (it has: {_columns(record.fields)}): fix the line or set {setting}"
    )


def _text(record: Record, key: str, setting: str) -> str:
    value = value_at(record.fields, key)
    if value is _ABSENT:
        raise _lacks(record, key, setting)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{record.where}: key '{key}' is not a text, or is empty: fix the line or set {setting}")
    return value


def _question(record: Record, key: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The question, and the messages if it is a list of them; the last one's text is then the question."""
    messages = value_at(record.fields, key)
    if not isinstance(messages, list):
        return _sound(record, key, _text(record, key, "data.question_key")), ()
    where = f"{record.where}: key '{key}'"
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        text = _content(message["content"]) if role is not None and "content" in message else None
        if role not in _ROLES or text is None:
            raise DataError(
                f"{where} holds {message!r:.60}: write each message as role (system, user or assistant) and content, "
                "which is text"
            )
        turns.append((str(role), _sound(record, key, text)))
    if not turns or turns[-1][0] != "user" or not turns[-1][1].strip():
        last = f"ends with a message of the {turns[-1][0]}" if turns and turns[-1][0] != "user" else "asks nothing"
        raise DataError(f"{where} {last}: end it with the user's question, which the policy answers")
    return turns[-1][1], tuple(turns)


def _content(content: Any) -> str | None:
    """A message's text; None if it is neither a text nor a list of parts that are texts."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
        return "".join(map(str, texts)) if whole else None
    return content if isinstance(content, str) else None


def answer_key(record: Record, data: DataConfig) -> str:
    """The key to look for the answer in: the solution's, if the answer is boxed and has no key of its own."""
    if data.answer_from == "boxed" and data.solution_key and value_at(record.fields, data.answer_key) is _ABSENT:
        return data.solution_key if value_at(record.fields, data.solution_key) is not _ABSENT else data.answer_key
    return data.answer_key


def _answers(record: Record, data: DataConfig) -> tuple[str, ...]:
    """Returns the gold answers, from one text or number or a list of them; empty if the record has none."""
    key = answer_key(record, data)
    if data.answer_from == "hashes" or (data.answer_from == "boxed" and key == data.solution_key):
        text = _text(record, key, "data.answer_key")
        answer = hashed(text) if data.answer_from == "hashes" else boxed(text)
        return (_sound(record, key, answer),) if answer else ()
    return gold_texts(record, key)


def gold_texts(record: Record, key: str) -> tuple[str, ...]:
    """A record's gold answers as texts: of a text, a finite number, or a list of them; empty if there is nothing in it.

    Raises:
        DataError: the key is missing, or holds anything else.
    """
    value = value_at(record.fields, key)
    if value is _ABSENT:
        raise _lacks(record, key, "data.answer_key")
    texts = [_answer_text(each) for each in value] if isinstance(value, list) else [_answer_text(value)]
    if None in texts and value is not None:
        raise DataError(
            f"{record.where}: key '{key}' is {value!r:.60}: write a text, a finite number or a list of them"
        )
    return tuple(_sound(record, key, text.strip()) for text in texts if text is not None and text.strip())


def _answer_text(answer: Any) -> str | None:
    if isinstance(answer, str):
        return answer
    if isinstance(answer, bool) or not isinstance(answer, int | float | Decimal) or not math.isfinite(answer):
        return None
    return format(Decimal(repr(answer)) if isinstance(answer, float) else Decimal(answer), "f")  # no task reads 1e-05


def _level(record: Record, key: str | None, needed: bool) -> int | None:
    """Reads a level from 1 to 5 written as 5, "5" or "Level 5"; None for "Level ?" and for no level."""
    value = value_at(record.fields, key, None) if key else None
    if value is None:
        if needed:
            raise DataError(f"{record.where} lacks the level key '{key}', which data.levels needs: set data.levels=[]")
        return None
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if found := _LEVEL.fullmatch(text):
        return int(found.group(1))
    if _UNKNOWN_LEVEL.fullmatch(text):
        return None
    raise DataError(
        f"{record.where}: key '{key}' is {value!r}, not a level from 1 to 5: fix the line or set data.level_key=null"
    )
