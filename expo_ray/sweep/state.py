"""What a job's folder says before the job starts: nothing there yet, to be gone on with, or finished."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from expo_ray.checkpoint.find import newest_valid
from expo_ray.checkpoint.settings import FREE, as_settings
from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config

FREE_KEYS = (*FREE, "eval.objective")
"""Settings that may differ between a job and the run that its folder holds: they change nothing that was learnt."""


def is_finished(folder: Path, config: Config) -> bool:
    """Whether the folder holds this very job, finished.

    Raises:
        ConfigError: the folder holds a run of other settings.
    """
    saved = folder / "config.yaml"
    if not saved.exists():
        return False
    if (difference := _difference(as_settings(config), _saved_settings(saved))) is not None:
        key, mine, theirs = difference
        raise ConfigError(
            f"{folder} holds a run of other settings ({key}={theirs}, here {key}={mine}): give another run_dir=FOLDER"
        )
    return bool(read_summary(folder).get("finished"))


def own_resume(folder: Path, config: Config) -> str:
    """`trainer.resume` of a job of a sweep: auto looks into the job's own folder only, never at the other jobs."""
    if config.trainer.resume != "auto":
        return config.trainer.resume
    damaged: list[str] = []  # the run itself tells of them
    return "auto" if newest_valid(folder / "checkpoints", damaged.append) else "never"


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary.json; empty where there is none."""
    file = folder / "summary.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key with two values: key, mine, theirs."""
    for key in sorted({*mine, *theirs}):
        if any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS):
            continue
        if mine.get(key) != theirs.get(key):
            return key, mine.get(key), theirs.get(key)
    return None


def _saved_settings(file: Path) -> dict[str, Any]:
    """A saved configuration; keys that the schema got since then have their defaults."""
    try:
        merged: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(file)))
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{file} is no configuration of this version ({reason}): give another run_dir=FOLDER"
        ) from error
    return as_settings(merged)
