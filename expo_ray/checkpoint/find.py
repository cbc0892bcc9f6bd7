"""Which checkpoint a run resumes from: its own newest valid one, or that of an unfinished run with equal settings."""

import os
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from expo_ray.checkpoint.manifest import MANIFEST, damage
from expo_ray.checkpoint.state import DriverState, Identity
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import as_settings, differences, facts_of, flat, with_new_keys
from expo_ray.config.schema import Config
from expo_ray.files import read_summary
from expo_ray.runtime.journal import owner_of

Report = Callable[[str], None]


def checkpoints_in(folder: Path) -> list[Path]:
    """Lists the checkpoints in a folder, oldest first, including damaged ones."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def newest_valid(folder: Path, report: Report) -> Path | None:
    """Finds the newest undamaged checkpoint in a folder; `report` is called with the reason for each skipped one."""
    for path in reversed(checkpoints_in(folder)):
        reason = damage(path)
        if reason is None:
            return path
        report(f"{path} is skipped: {reason}")
    return None


def find_checkpoint(config: Config, run_folder: Path, identity: Identity, report: Report) -> Path | None:
    """Finds the checkpoint to start from, as `trainer.resume` says.

    auto: the newest valid one in this run's folder; otherwise that of an unfinished run (without a summary.json that
    says finished) in a neighbouring folder, if its settings are the same and no process runs it. never: none. A path:
    a run folder or a checkpoint.

    Args:
        config: the run's configuration.
        run_folder: its folder.
        identity: identity of its model and prompts.
        report: called with a sentence for each skipped checkpoint.

    Raises:
        ConfigError: a path without a valid checkpoint, or a checkpoint that does not fit these settings.
    """
    resume = config.trainer.resume
    if resume == "never":
        return None
    if resume == "auto":
        own = newest_valid(run_folder / "checkpoints", report)
        found = own or _of_unfinished_neighbour(config, run_folder, identity, report)
    else:
        found = _at(Path(resume), report)
    if found is not None:
        _check(found, config, identity)
    return found


def changed_settings(checkpoint: Path, config: Config) -> list[str]:
    """Lists the settings that differ from the checkpoint's and may differ, as "key: old -> new"."""
    return differences(DriverState.read(checkpoint).settings, as_settings(config))[1]


def _at(path: Path, report: Report) -> Path:
    if not (path / MANIFEST).exists() and not path.name.startswith("step_"):
        found = newest_valid(path / "checkpoints", report)
        if found is None:
            raise ConfigError(
                f"trainer.resume={path} has no valid checkpoint; give a run folder, a checkpoint, auto or never"
            )
        return found.absolute()
    reason = damage(path)
    if reason is not None:
        raise ConfigError(f"trainer.resume={path}: {reason}; give the checkpoint before it, or its run folder")
    return path.absolute()


def _check(checkpoint: Path, config: Config, identity: Identity) -> None:
    """Raises ConfigError if the run cannot resume from this checkpoint."""
    state = DriverState.read(checkpoint)
    ways = "put it back, or start a new run with trainer.resume=never and another run_dir"
    refused, _ = differences(state.settings, as_settings(config))
    if refused:
        raise ConfigError(f"the run cannot resume from {checkpoint} with {refused[0]}: {ways}")
    if other := _other_inputs(state, config, identity):
        raise ConfigError(f"the run cannot resume from {checkpoint}: {other}; {ways}")


def _other_inputs(state: DriverState, config: Config, identity: Identity) -> str | None:
    """Which of the run's inputs has another content than the checkpoint's run had; None if none has.

    What a state of an earlier version does not hold is not compared.
    """
    before, data = state.identity, f"data={config.data.name}"
    path = state.settings.get("model.path")
    kinds = {
        "model": f"model.path={config.model.path} is not the model that it started from (model.path={path})",
        "weights": f"model.path={config.model.path} has other weights than the model that it started from "
        f"(model.path={path})",
        "problems": f"the training problems ({data}) are not those that it was trained on",
        "prompts": f"the training problems ({data}) or the token ids of their prompts (tokenizer, chat template) are "
        "not those that it was trained on",
        "stop_ids": f"completions end with the token ids {identity.stop_ids} and ended with {before.stop_ids} "
        "(tokenizer, generation_config.json)",
    }
    for name, sentence in kinds.items():
        old, new = getattr(before, name), getattr(identity, name)
        if old and old != new:
            shown = "" if name == "stop_ids" else f", digest {old[-8:]} then and {new[-8:]} now"
            return sentence + shown
    return None


def _of_unfinished_neighbour(config: Config, run_folder: Path, identity: Identity, report: Report) -> Path | None:
    mine = as_settings(config)
    for file in sorted(run_folder.parent.glob("*/config.yaml"), key=os.path.getmtime, reverse=True):
        other = file.parent
        if other == run_folder or not checkpoints_in(other / "checkpoints"):
            continue
        try:
            if read_summary(other).get("finished"):
                continue
            differing = _differing(with_new_keys(flat(OmegaConf.to_container(OmegaConf.load(file)))), mine)
        except (ValueError, OSError, AttributeError, OmegaConfBaseException, YAMLError) as error:
            report(f"{other} is skipped: it cannot be read ({' '.join(str(error).split())})")
            continue
        if differing:
            report(f"{other} is skipped: it has other settings ({differing[0]}); trainer.resume={other} names it")
            continue
        if (owner := owner_of(other)) is not None:
            report(f"{other} is skipped: {owner} is running it")
            continue
        if (found := newest_valid(other / "checkpoints", report)) is None:
            continue
        if (inputs := _other_inputs(DriverState.read(found), config, identity)) is None:
            return found
        report(f"{other} is skipped: {inputs}")
    return None


def _differing(theirs: dict[str, object], mine: dict[str, object]) -> list[str]:
    return [
        f"{key}: {theirs.get(key)} there, {mine.get(key)} here"
        for key in sorted(theirs.keys() | mine.keys())
        if theirs.get(key) != mine.get(key) and facts_of(key).between_runs != "ignored"
    ]
