"""One job of a sweep: its overrides, its folder, the command that runs it alone, and how it ended."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from expo_ray.checkpoint.find import newest_valid
from expo_ray.config.compose import compose_config, parse_overrides, quoted
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import as_settings, facts_of, with_new_keys
from expo_ray.config.schema import Config
from expo_ray.files import read_summary


def is_finished(folder: Path, config: Config) -> bool:
    """Says whether the folder holds this job, finished.

    Raises:
        ConfigError: the folder holds a run with other settings, or its summary.json cannot be read.
    """
    saved = folder / "config.yaml"
    if not saved.exists():
        return False
    if (difference := _difference(as_settings(config), _saved_settings(saved))) is not None:
        key, mine, theirs = difference
        raise ConfigError(
            f"{folder} holds a run with other settings ({key}={theirs}, here {key}={mine}): give another run_dir=FOLDER"
        )
    try:
        return bool(read_summary(folder).get("finished"))
    except ValueError as error:
        raise ConfigError(f"{folder}: {error}: delete that file to resume the run, or give another run_dir") from error


def own_resume(folder: Path, config: Config) -> str:
    """Returns `trainer.resume` for a job of a sweep: "auto" searches the job's own folder only, not the other jobs'."""
    if config.trainer.resume != "auto":
        return config.trainer.resume
    damaged: list[str] = []  # the run itself reports them
    return "auto" if newest_valid(folder / "checkpoints", damaged.append) else "never"


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns the first key in which the two runs learn or end differently, with both values."""
    for key in sorted({*mine, *theirs}):
        facts = facts_of(key)
        if mine.get(key) != theirs.get(key) and facts.on_resume != "free" and not facts.after_run:
            return key, mine.get(key), theirs.get(key)
    return None


def _saved_settings(file: Path) -> dict[str, Any]:
    """Reads a saved configuration; keys that the schema has gained since have their defaults."""
    try:
        loaded: Any = OmegaConf.to_container(OmegaConf.load(file))
        merged: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), with_new_keys(loaded)))
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{file} is not a configuration of this version ({reason}): give another run_dir=FOLDER"
        ) from error
    return as_settings(merged)


class Ended:
    """The ways in which a job ends, as sweep.json has them."""

    FINISHED, BEFORE, FAILED, STOPPED, NOT_STARTED = "finished", "finished before", "failed", "stopped", "not started"


COLLECTIVE = ("hydra", "run_dir")
"""Keys, with everything below them, that belong to the sweep as a whole."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep."""

    number: int
    overrides: tuple[str, ...]
    """As the sweeper made them, in Hydra's grammar."""
    folder: Path

    def config(self) -> Config:
        """Composes the configuration that the job runs with.

        Raises:
            ConfigError: the overrides do not fit together.
        """
        return compose_config([*self.own_overrides(), f"run_dir={quoted(str(self.folder))}"])

    def own_overrides(self) -> list[str]:
        """Returns the overrides without those of the sweep as a whole."""
        parsed = parse_overrides(list(self.overrides))
        return [o.input_line or "" for o in parsed if o.key_or_group.split("/")[0].split(".")[0] not in COLLECTIVE]

    def command(self, python: str = sys.executable, resume: str | None = None) -> list[str]:
        """Returns the command that runs this job alone.

        Args:
            python: the interpreter.
            resume: replaces the job's `trainer.resume`; None: keep it.
        """
        resumed = [] if resume is None else [f"trainer.resume={quoted(resume)}"]
        own = [*self.own_overrides(), f"run_dir={quoted(str(self.folder))}", *resumed]
        return [python, "-m", "expo_ray.train", *own]

    def shell_line(self, python: str, resume: str | None = None) -> str:
        """Returns the same command as one line for a shell."""
        return shlex.join(self.command(python, resume))


@dataclass
class JobEnd:
    """How a job ended, as a line of sweep.json."""

    job: int
    overrides: list[str]
    folder: str
    ended: str
    """One of `Ended`."""
    seconds: float = 0.0
    """Wall-clock time in this call of the command."""
    error: str | None = None
    objective: float | None = None
    """The value of `eval.objective` in the final evaluation; None if there is none."""
    log: str | None = None
    """The log file that has more about a failure."""


def job_end(job: Job, ended: str, seconds: float = 0.0, error: str | None = None, log: Path | None = None) -> JobEnd:
    """Makes the record of a job's end."""
    return JobEnd(
        job.number,
        list(job.overrides),
        str(job.folder),
        ended,
        round(seconds, 1),
        error,
        log=None if log is None else str(log),
    )


def differing(overrides: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns each job's overrides that not all jobs have in common; all of them if there is only one job."""
    if len(overrides) < 2:
        return [list(of_job) for of_job in overrides]
    common = set(overrides[0]).intersection(*map(set, overrides[1:]))
    return [[text for text in of_job if text not in common] for of_job in overrides]
