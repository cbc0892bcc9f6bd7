"""Where a run goes on: its own newest checkpoint, or that of an unfinished run with the same settings."""

import json
import shutil
from pathlib import Path

from omegaconf import OmegaConf

from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config
from expo_ray.driver.checkpoints import STATE_FILE, checkpoints_in

RECORDS = ("metrics.jsonl", "samples.jsonl", "evaluations.jsonl", "proofs.jsonl")
FREE_KEYS = ("run_dir", "dry_run", "trainer.resume", "logging")
"""Settings that may differ between a run and its continuation without a word."""


def find_checkpoint(config: Config, run_folder: Path) -> Path | None:
    """The checkpoint to start from, by `trainer.resume`.

    auto: the newest one in this run's folder; else the newest one of an unfinished run beside it (no
    summary.json that says finished) whose settings are the same. never: none. A path: a run folder or a
    checkpoint.

    Raises:
        ConfigError: a path where there is no checkpoint.
    """
    resume = config.trainer.resume
    if resume == "never":
        return None
    if resume == "auto":
        own = checkpoints_in(run_folder / "checkpoints")
        return own[-1] if own else _of_unfinished_neighbour(config, run_folder)
    path = Path(resume)
    found = [path] if (path / STATE_FILE).exists() else checkpoints_in(path / "checkpoints")
    if not found:
        raise ConfigError(
            f"trainer.resume={resume}: no checkpoint there; give a run folder, a checkpoint, auto or never"
        )
    return found[-1].absolute()


def take_over_records(checkpoint: Path, run_folder: Path, steps_done: int) -> None:
    """Brings the records of the steps before the checkpoint into this run's folder, and drops those after it."""
    before = checkpoint.parents[1]
    for name in RECORDS:
        source = before / name
        if not source.exists():
            continue
        lines = [line for line in source.read_text().splitlines() if _belongs(json.loads(line), steps_done)]
        aside = run_folder / f".{name}.partial"
        aside.write_text("".join(line + "\n" for line in lines))
        shutil.move(aside, run_folder / name)


def _belongs(line: dict[str, object], steps_done: int) -> bool:
    if "step" in line:
        return int(str(line["step"])) < steps_done
    return int(str(line.get("steps_done", 0))) <= steps_done


def _of_unfinished_neighbour(config: Config, run_folder: Path) -> Path | None:
    mine = _settings(OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(config))))
    for folder in sorted(run_folder.parent.glob("*/config.yaml"), reverse=True):
        other = folder.parent
        if other == run_folder or _finished(other):
            continue
        found = checkpoints_in(other / "checkpoints")
        if found and _settings(OmegaConf.load(folder)) == mine:
            return found[-1]
    return None


def _finished(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.exists() and bool(json.loads(summary.read_text()).get("finished"))


def _settings(config: object) -> object:
    cleaned = OmegaConf.create(OmegaConf.to_container(config))
    for key in FREE_KEYS:
        OmegaConf.update(cleaned, key, None, force_add=True)
    return OmegaConf.to_container(cleaned)
