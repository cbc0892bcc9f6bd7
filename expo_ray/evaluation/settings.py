"""The settings that an evaluation's samples depend on, stored in its folder: only the same evaluation resumes there."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expo_ray.checkpoint.state import identify
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import defaults, facts_of, value_of
from expo_ray.config.schema import Config
from expo_ray.files import write_whole
from expo_ray.messages import Prompt
from expo_ray.preflight.estimate import sequences_at_once

FILE = "settings.json"
OTHERS = ("config.yaml", "samples.jsonl", "metrics.jsonl", "checkpoints")
"""A folder that has one of these but not FILE belongs to another command."""
CHUNK = "eval.chunk"
_ROUNDS = 4
"""With eval.chunk=0 a chunk fills all engines this many times; they idle only at the end of each chunk."""


def settle(config: Config, folder: Path, prompts: Sequence[Prompt], stop_ids: Sequence[int] = ()) -> dict[str, Any]:
    """Determines this evaluation's settings, and checks that they equal those that the folder holds, if any.

    Returns:
        Dotted key -> value, with the fields of `Identity` under their names. `eval.chunk` is the number of prompts of
        one chunk, chosen here if it was 0.

    Raises:
        ConfigError: the folder belongs to another evaluation or another command.
    """
    before = _stored(folder)
    settings = {key: value_of(config, key) for key in defaults() if facts_of(key).evaluation}
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


def _stored(folder: Path) -> dict[str, Any] | None:
    file = folder / FILE
    if file.exists():
        stored = json.loads(file.read_text())
        if not isinstance(stored, dict):
            raise ConfigError(f"{file} does not belong to an evaluation: give a new run_dir=FOLDER")
        return stored
    if found := [name for name in OTHERS if (folder / name).exists()]:
        raise ConfigError(f"run_dir={folder} holds {found[0]} of another command: give a new run_dir=FOLDER")
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
