"""What `python -m expo_ray.train` does around a run: check every job first, let Hydra make the folder, tell the end."""

import logging
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from expo_ray.config.compose import CONF, compose_config, derive, parse_overrides, quoted, register, sweep_jobs
from expo_ray.config.errors import ConfigError, InputError
from expo_ray.config.schema import Config
from expo_ray.data.sources import load_problems
from expo_ray.preflight.checks import preflight
from expo_ray.preflight.inputs import check_hub, check_longest
from expo_ray.preflight.plan import Plan, plan_text
from expo_ray.preflight.values import check_config
from expo_ray.sweep import ledger
from expo_ray.sweep.in_turn import run_in_turn
from expo_ray.sweep.job import Job, JobEnd

Runner = Callable[[Config, Path], None]


@dataclass
class Outcome:
    """How the jobs of one command ended."""

    folder: Path | None = None
    """Of the run, or of the whole sweep."""
    error: Exception | None = None
    """Of a single run."""
    sweep: list[JobEnd] | None = None
    """Of a sweep: every job, in order."""
    objective: str = ""
    """Of a sweep: `eval.objective`."""


def check_arguments(arguments: list[str]) -> Namespace:
    """Parses a command line and checks every job that it asks for; makes no folder.

    Raises:
        InputError: the first thing that is wrong, in one sentence.
    """
    parsed = _parse(arguments)
    jobs = sweep_jobs(parsed.overrides) if _is_multirun(parsed) else [parsed.overrides]
    if not _is_multirun(parsed):
        for override in parse_overrides(parsed.overrides):
            if override.is_sweep_override():
                raise ConfigError(f"'{override.input_line}' names several values: add -m to run each of them")
    if "hydra/sweeper=optuna" in parsed.overrides and "hydra.sweeper.direction=maximize" not in parsed.overrides:
        raise ConfigError("hydra/sweeper=optuna looks for the smallest value: use hydra/sweeper=optuna_maximize")
    elsewhere = "hydra/launcher=ray_jobs" in parsed.overrides
    for overrides in jobs:
        config = compose_config(overrides)
        if elsewhere:  # what this machine and its hub cache have decides nothing; each job checks its own node
            config.dry_run, config.cluster.address = True, config.cluster.address or "auto"
        if not parsed.cfg:
            _check(config)
    return parsed


def launch(arguments: list[str], job: Runner) -> Outcome:
    """Hands the command line to Hydra, which makes the folder (or a sweep's folders) and calls `job` in it.

    A job that fails does not end a sweep. Jobs that a sweep's folder holds finished are not run again.
    """
    parsed = _parse(arguments)
    if _is_multirun(parsed) and not parsed.cfg:
        return _launch_sweep(arguments, parsed.overrides, job)
    outcome = Outcome()

    def task(composed: DictConfig) -> None:
        outcome.folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            _run(_config(composed, outcome.folder), job)
        except InputError as error:
            outcome.error = error
        except Exception as error:
            logging.getLogger("expo_ray").exception("the run failed")
            outcome.error = error

    _hydra(task, arguments)
    return outcome


def _launch_sweep(arguments: list[str], overrides: list[str], job: Runner) -> Outcome:
    common = [o.input_line or "" for o in parse_overrides(overrides) if not o.is_sweep_override()]
    shared = compose_config(common)
    folder = Path(shared.run_dir)
    if not any(o.key_or_group == "run_dir" for o in parse_overrides(overrides)):
        # Named once, so that the command in each summary.json is the one that goes on with this sweep.
        arguments = [*arguments, f"run_dir={quoted(str(folder))}"]
    jobs = sum(1 for _ in sweep_jobs(overrides))  # 1 also if a sweeper chooses the values itself
    ledger.begin(folder, shlex.join(["python", "-m", "expo_ray.train", *arguments]), jobs if jobs > 1 else None)

    def task(composed: DictConfig) -> float | None:
        own = Path(HydraConfig.get().runtime.output_dir)
        number, mine = HydraConfig.get().job.num, HydraConfig.get().overrides.task
        config = _config(composed, own)
        return run_in_turn(Job(number, tuple(mine), own), config, lambda: _run(config, job), folder)

    try:
        _hydra(task, arguments)
    except SystemExit as stopped:  # Hydra has told what a sweeper raised; what ended before is listed all the same
        if not stopped.code:
            raise
        return Outcome(folder, ConfigError("the sweeper failed, see above"), ledger.ends(folder), shared.eval.objective)
    return Outcome(folder, None, ledger.ends(folder), shared.eval.objective)


def prepare_folder(config: Config, folder: Path) -> Plan:
    """Writes config.yaml (resolved) and plan.txt into the run's folder and gives the plan."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = check_config(config)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    (folder / "plan.txt").write_text(plan_text(plan))
    return plan


def _hydra(task: Callable[[DictConfig], float | None], arguments: list[str]) -> None:
    register()
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(task)()


def _is_multirun(parsed: Namespace) -> bool:
    return bool(parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides)


def _config(composed: DictConfig, folder: Path) -> Config:
    config: Any = OmegaConf.to_object(composed)
    config.run_dir = str(folder)
    return derive(config)


def _run(config: Config, job: Runner) -> None:
    _check(config)
    folder = Path(config.run_dir)
    plan = prepare_folder(config, folder)
    if config.dry_run:
        print(plan_text(plan), end="")
    else:
        job(config, folder)


def _check(config: Config) -> None:
    check_config(config)
    for held_out, path in ((False, config.data.path), (True, config.data.eval_path)):
        if path is not None:
            check_longest(load_problems(config.data, held_out=held_out, seed=config.seed), config)
    if config.data.path is None and config.data.hub is None and config.data.name != "toy":
        raise ConfigError(f"data={config.data.name} needs data.path=FILE, a file of JSON Lines")
    if not config.dry_run:
        preflight(config)
        check_hub(config)


def _parse(arguments: list[str]) -> Namespace:
    parser: ArgumentParser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{message}: see python -m expo_ray.train --help")

    parser.error = error  # type: ignore[method-assign]
    return parser.parse_args(arguments)
