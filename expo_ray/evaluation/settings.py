"""What a command line of expo_ray.evaluate means, and the settings that its samples depend on.

The settings are stored in the folder: only the same evaluation resumes there.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expo_ray.checkpoint.state import identify
from expo_ray.config.compose import groups
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import defaults, facts_of, value_of
from expo_ray.config.schema import Config, DataConfig
from expo_ray.data.formats import FORMATS, read_records
from expo_ray.data.records import QUESTIONS, USUAL, with_preset
from expo_ray.files import write_whole
from expo_ray.messages import Prompt
from expo_ray.preflight.estimate import sequences_at_once

FILE = "settings.json"
OTHERS = ("config.yaml", "samples.jsonl", "metrics.jsonl", "checkpoints")
"""A folder that has one of these but not FILE belongs to another command."""
CHUNK = "eval.chunk"
_ROUNDS = 4
"""With eval.chunk=0 a chunk fills all engines this many times; they idle only at the end of each chunk."""
DEFAULTS = ("run_name=evaluate",)
GOES_WITH = {
    "data=toy": ("verifier=toy",),
    "data=gsm8k": ("verifier=gsm8k",),
    "model=toy": ("rollout.max_prompt_tokens=32", "rollout.max_completion_tokens=48"),
}
"""Overrides that a choice implies; the user's own overrides win."""


def settle(
    config: Config, folder: Path, prompts: Sequence[Prompt], stop_ids: Sequence[int] = (), model: str | None = None
) -> dict[str, Any]:
    """Determines this evaluation's settings, and checks that they equal those that the folder holds, if any.

    Args:
        config: the evaluation's configuration.
        folder: its folder.
        prompts: what is sampled.
        stop_ids: token ids that end a completion.
        model: model.path as the user gave it, if `config` has an adapter's merged model, which is in the folder.

    Returns:
        Dotted key -> value, with the fields of `Identity` under their names. `eval.chunk` is the number of prompts of
        one chunk, chosen here if it was 0.

    Raises:
        ConfigError: the folder belongs to another evaluation or another command.
    """
    before = stored(folder)
    settings = {key: value_of(config, key) for key in defaults() if facts_of(key).evaluation}
    settings["model.path"] = model or config.model.path
    settings[CHUNK] = config.eval.chunk or (before or {}).get(CHUNK) or _whole_engines(config)
    settings |= asdict(identify(config.model.path, prompts, stop_ids))
    for key, value in settings.items():
        # A key that an earlier version did not store counts as its default, a digest as the same.
        if before is not None and (old := before.get(key, defaults().get(key, value))) != value:
            raise ConfigError(_difference(key, old, value, folder))
    return settings


def store(settings: dict[str, Any], folder: Path) -> None:
    """Writes the settings to the folder."""
    write_whole(folder / FILE, json.dumps(settings, indent=2) + "\n")


def stored(folder: Path, model: str | None = None) -> dict[str, Any] | None:
    """The settings of the evaluation that the folder holds; None if it holds none.

    Raises:
        ConfigError: the folder belongs to another command, or to the evaluation of another model.path than `model`.
    """
    file = folder / FILE
    if file.exists():
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise ConfigError(f"{file} does not belong to an evaluation: give a new run_dir=FOLDER")
        if model is not None and (old := found.get("model.path", model)) != model:
            raise ConfigError(_difference("model.path", old, model, folder))
        return found
    if others := [name for name in OTHERS if (folder / name).exists()]:
        raise ConfigError(f"run_dir={folder} holds {others[0]} of another command: give a new run_dir=FOLDER")
    return None


def _difference(key: str, before: Any, now: Any, folder: Path) -> str:
    if key in ("prompts", "problems"):
        what = "the problems or their prompts are not those"
    elif key in ("model", "weights"):
        what = "the files of model.path are not those"
    else:
        what = f"{key}={now} is not the {before}"
    return f"{what} that run_dir={folder} was started with: use the same, or a new run_dir=FOLDER"


def _whole_engines(config: Config) -> int:
    at_once = sequences_at_once(config, shape=None)  # if the cache holds fewer, a chunk takes more rounds
    return max(1, _ROUNDS * at_once * config.rollout.workers // config.eval.samples)


def expand(arguments: list[str]) -> list[str]:
    """Turns a command line into Hydra overrides.

    `data=FILE` becomes data=file with the file's path, and the verifier that its answers need; `model=FOLDER` becomes
    model.path. Implied overrides come first, so that the user's own ones win.

    Raises:
        DataError: the data file is missing or damaged, or has no question or answer.
    """
    implied, written = list(DEFAULTS), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        path = Path(value).expanduser()
        if key == "data" and equals and value not in groups()["data"] and _names_a_file(path):
            implied += _keys_of(path, arguments)
        elif key == "model" and equals and value not in groups()["model"] and path.is_dir():
            implied.append(f"model.path={_quoted(path)}")
        else:
            implied += GOES_WITH.get(argument, ())
            written.append(argument)
    return implied + written


def _names_a_file(path: Path) -> bool:
    return path.exists() or any(suffix in FORMATS for suffix in path.suffixes) or len(path.parts) > 1


def _keys_of(file: Path, arguments: list[str]) -> list[str]:
    """The overrides for a file, by the columns of its first record (data.preset=auto) and the keys that were given."""
    first = next(read_records(str(file), "data"))
    given = dict(argument.removeprefix("data.").split("=", 1) for argument in arguments if "=" in argument)
    chosen: dict[str, Any] = {key: given[key] for key in USUAL if key in given}
    preset = given["preset"] if given.get("preset") in ("none", *QUESTIONS) else "auto"
    taken, _ = with_preset(DataConfig(name="file", preset=preset, **chosen), first)
    return [
        "data=file",
        f"data.path={_quoted(file)}",
        *(GOES_WITH["data=gsm8k"] if taken.answer_from == "hashes" else ()),
    ]


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
