"""What a submission asks for: the command line on the cluster, and the files and variables that travel with it."""

import shlex
import tempfile
from pathlib import Path
from typing import Any

from expo_ray.config.compose import REPOSITORY, compose_config, parse_overrides, quoted, sweep_jobs
from expo_ray.config.errors import ConfigError
from expo_ray.preflight.values import check_config
from expo_ray.submission.dashboard import time_to_stop

LEFT_HERE = (
    "/.git/",
    "/.venv*/",
    "/runs/",
    "/outputs/",
    "/multirun/",
    "/bench/",
    "/docker/",
    "/docs/",
    "/tests/",
    "/.*_cache/",
    "/.hypothesis/",
    "*.egg-info/",
    "__pycache__/",
    "*.log",
)
"""Of the repository, in .gitignore's grammar: what no job needs. Ray also leaves out what .gitignore names."""
STOP_S = 1800
"""Seconds between SIGTERM and SIGKILL when a job is stopped."""


def complete(overrides: list[str], runs: str | None, multirun: bool) -> list[str]:
    """The overrides as the job gets them: checked, with a run folder that outlives the job, joining its cluster.

    Args:
        overrides: of the command line.
        runs: a folder that all nodes see, for runs without a `run_dir` of their own.
        multirun: several values of a key are a sweep.

    Raises:
        ConfigError: what no cluster can run, in one sentence. What only the nodes know (files, sizes, places) is
            checked there.
    """
    given = {override.key_or_group: override.value() for override in parse_overrides(overrides)}
    for of_job in sweep_jobs(overrides) if multirun else [overrides]:
        _check(of_job)
    added = []
    if "run_dir" not in given:
        if runs is None:
            raise ConfigError(
                "run_dir is relative to a folder that ends with the job: give run_dir=/SHARED/FOLDER or "
                "--runs /SHARED/FOLDER, which all nodes see"
            )
        given["run_dir"] = runs
        added.append(f"run_dir={quoted(runs.rstrip('/') + '/${run_name}/${now:%Y-%m-%d_%H-%M-%S}')}")
    if not str(given["run_dir"]).strip("'\"").startswith("/"):
        raise ConfigError(f"run_dir={given['run_dir']} is not absolute: a job starts in a folder that ends with it")
    if "cluster.address" not in given:
        added.append("cluster.address=auto")
    return [*overrides, *added]


def _check(overrides: list[str]) -> None:
    """Checks one job without what this machine has: its cores, packages and folders are not the cluster's."""
    for override in parse_overrides(overrides):
        if override.is_sweep_override():
            raise ConfigError(f"'{override.input_line}' names several values: add -m to run each of them")
    config = compose_config(overrides)
    config.dry_run, config.cluster.address = True, "auto"
    config.run_dir, config.trainer.resume, config.algo.dpo_pairs_path = tempfile.gettempdir(), "auto", None
    if not Path(config.model.path).exists():
        config.model.path = "elsewhere/model"
    check_config(config)


def entrypoint(python: str, overrides: list[str], multirun: bool) -> str:
    """The job's shell line. `exec`: Ray's signal reaches the trainer and no shell above it."""
    return shlex.join(["exec", python, "-m", "expo_ray.train", *(["-m"] if multirun else []), *overrides])


def runtime_env() -> dict[str, Any]:
    """Ray's runtime environment: this code travels; the packages must be installed on the nodes.

    No secret is in it: Ray's dashboard shows it.
    """
    return {
        "working_dir": str(REPOSITORY),
        "excludes": list(LEFT_HERE),
        "env_vars": time_to_stop(STOP_S),
    }
