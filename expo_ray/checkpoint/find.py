"""Where a run goes on: its own newest valid checkpoint, or that of an unfinished run with the same settings."""

import os
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from expo_ray.checkpoint.manifest import MANIFEST, damage
from expo_ray.checkpoint.state import DriverState, Identity
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import as_settings, differences, facts_of, flat
from expo_ray.config.schema import Config
from expo_ray.files import read_summary

Tell = Callable[[str], None]


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, damaged ones included."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def newest_valid(folder: Path, tell: Tell) -> Path | None:
    """The newest undamaged checkpoint in a folder; `tell` hears why newer ones were passed over."""
    for path in reversed(checkpoints_in(folder)):
        reason = damage(path)
        if reason is None:
            return path
        tell(f"{path} is passed over: {reason}")
    return None


def find_checkpoint(config: Config, run_folder: Path, identity: Identity, tell: Tell) -> Path | None:
    """The checkpoint to start from, by `trainer.resume`.

    auto: the newest valid one in this run's folder; else the newest valid one of an unfinished run beside it (no
    summary.json that says finished) whose settings are the same. never: none. A path: a run folder or a checkpoint.

    Args:
        config: the run's configuration.
        run_folder: its folder.
        identity: of its model and prompts.
        tell: hears which checkpoints are passed over, and why.

    Raises:
        ConfigError: a path without a valid checkpoint, or one that these settings cannot go on from.
    """
    resume = config.trainer.resume
    if resume == "never":
        return None
    if resume == "auto":
        own = newest_valid(run_folder / "checkpoints", tell)
        found = own or _of_unfinished_neighbour(config, run_folder, tell)
    else:
        found = _at(Path(resume), tell)
    if found is not None:
        _check(found, config, identity)
    return found


def changed_settings(checkpoint: Path, config: Config) -> list[str]:
    """The settings that differ from the checkpoint's and that the run goes on with, as "key: old -> new"."""
    return differences(DriverState.read(checkpoint).settings, as_settings(config))[1]


def _at(path: Path, tell: Tell) -> Path:
    if not (path / MANIFEST).exists() and not path.name.startswith("step_"):
        found = newest_valid(path / "checkpoints", tell)
        if found is None:
            raise ConfigError(
                f"trainer.resume={path}: no valid checkpoint there; give a run folder, a checkpoint, auto or never"
            )
        return found.absolute()
    reason = damage(path)
    if reason is not None:
        raise ConfigError(f"trainer.resume={path}: {reason}; give the checkpoint before it, or its run folder")
    return path.absolute()


def _check(checkpoint: Path, config: Config, identity: Identity) -> None:
    """Raises ConfigError where the run cannot go on from there."""
    state = DriverState.read(checkpoint)
    ways = "put it back, or start anew with trainer.resume=never and another run_dir"
    refused, _ = differences(state.settings, as_settings(config))
    if refused:
        raise ConfigError(f"the run cannot go on from {checkpoint} with {refused[0]}: {ways}")
    if state.identity.model != identity.model:
        raise ConfigError(f"model.path={config.model.path} is not the model that {checkpoint} started from: {ways}")
    if state.identity.prompts != identity.prompts:
        raise ConfigError(f"the training problems (data={config.data.name}) are not those of {checkpoint}: {ways}")


def _of_unfinished_neighbour(config: Config, run_folder: Path, tell: Tell) -> Path | None:
    mine = as_settings(config)
    for file in sorted(run_folder.parent.glob("*/config.yaml"), key=os.path.getmtime, reverse=True):
        other = file.parent
        if other == run_folder or read_summary(other).get("finished") or not checkpoints_in(other / "checkpoints"):
            continue
        differing = _differing(flat(OmegaConf.to_container(OmegaConf.load(file))), mine)
        if differing:
            tell(f"{other} is passed over: it has other settings ({differing[0]}); trainer.resume={other} names it")
            continue
        if found := newest_valid(other / "checkpoints", tell):
            return found
    return None


def _differing(theirs: dict[str, object], mine: dict[str, object]) -> list[str]:
    return [
        f"{key}: {theirs.get(key)} there, {mine.get(key)} here"
        for key in sorted(theirs.keys() | mine.keys())
        if theirs.get(key) != mine.get(key) and facts_of(key).between_runs != "ignored"
    ]
