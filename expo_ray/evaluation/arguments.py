"""Short forms of overrides for `python -m expo_ray.evaluate`: data=FILE, model=FOLDER."""

from pathlib import Path
from typing import Any

from expo_ray.config.compose import groups
from expo_ray.config.errors import DataError
from expo_ray.data.sources import read_json_lines

DEFAULTS = ("run_name=evaluate",)
GOES_WITH = {
    "data=toy": ("verifier=toy",),
    "data=gsm8k": ("verifier=gsm8k",),
    "model=toy": ("rollout.max_prompt_tokens=32", "rollout.max_completion_tokens=48"),
}
"""Overrides that a choice implies; the user's own overrides win."""
_QUESTIONS, _KINDS = ("problem", "question"), ("type", "subject", "kind")


def expand(arguments: list[str]) -> list[str]:
    """Turns a command line into Hydra overrides.

    `data=FILE` becomes data=jsonl with the file's path and the keys that its first record has; `model=FOLDER` becomes
    model.path. Implied overrides come first, so that the user's own ones win.

    Raises:
        DataError: the data file is missing, is not JSON Lines, or has no question or answer.
    """
    implied, written = list(DEFAULTS), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        path = Path(value).expanduser()
        if key == "data" and equals and value not in groups()["data"] and _names_a_file(path):
            implied += _keys_of(path)
        elif key == "model" and equals and value not in groups()["model"] and path.is_dir():
            implied.append(f"model.path={_quoted(path)}")
        else:
            implied += GOES_WITH.get(argument, ())
            written.append(argument)
    return implied + written


def _names_a_file(path: Path) -> bool:
    return path.is_file() or path.suffix in (".jsonl", ".json") or len(path.parts) > 1


def _keys_of(file: Path) -> list[str]:
    """The overrides for a file, by the keys of its first record."""
    fields = next(read_json_lines(file, "data")).fields
    question = next((name for name in _QUESTIONS if name in fields), None)
    if question is None:
        there = ", ".join(list(fields)[:12]) or "none"
        raise DataError(f"data={file}: its first record has no key {' or '.join(_QUESTIONS)} (it has: {there})")
    kind = next((name for name in _KINDS if name in fields), "null")
    return [
        "data=jsonl",
        f"data.path={_quoted(file)}",
        f"data.question_key={question}",
        f"data.level_key={'level' if 'level' in fields else 'null'}",
        f"data.kind_key={kind}",
        *_answer_keys(fields, file),
    ]


def _answer_keys(fields: dict[str, Any], file: Path) -> list[str]:
    """Finds where the answer is: in its own field, after #### as in GSM8K, or in the solution's box as in MATH."""
    answer, solution = fields.get("answer"), fields.get("solution")
    if isinstance(answer, str) and "####" in answer:
        return ["data.answer_from=hashes", "data.solution_key=answer", *GOES_WITH["data=gsm8k"]]
    if answer is None and not isinstance(solution, str):
        raise DataError(f"data={file}: its first record has neither a key answer nor a text under solution")
    return [f"data.answer_from={'boxed' if answer is None else 'field'}"]


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
