"""What `python -m expo_ray.train` does around a run: checks every job first, then lets Hydra make the folders."""

import logging
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from expo_ray.config.compose import (
    CONF,
    compose_config,
    forced_mapping,
    jobs_of,
    parse_overrides,
    quoted,
    register,
    sweep_jobs,
    sweeper_chooses,
)
from expo_ray.config.errors import ConfigError, InputError
from expo_ray.data.sources import Problems
from expo_ray.preflight.checks import Checked, check_run, check_start
from expo_ray.preflight.plan import write_plan
from expo_ray.runtime.journal import owned, refuse_owned
from expo_ray.sweep import ledger
from expo_ray.sweep.in_turn import run_in_turn
from expo_ray.sweep.job import Job, JobEnd

Runner = Callable[[Checked, Path], None]


@dataclass
class Command:
    """A command line whose jobs passed their checks."""

    arguments: list[str]
    parsed: Namespace
    checked: dict[tuple[str, ...], Checked]
    """By the job's overrides; empty for `--cfg`."""

    @property
    def sweeps(self) -> bool:
        """Whether the command asks for a sweep."""
        return bool(self.parsed.multirun or "hydra.mode=MULTIRUN" in self.parsed.overrides)


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


def check_arguments(arguments: list[str]) -> Command:
    """Parses a command line and checks every job that it asks for, once; makes no folder.

    Raises:
        InputError: the first thing that is wrong, in one sentence.
    """
    command = Command(arguments, _parse(arguments), {})
    overrides = command.parsed.overrides
    jobs = jobs_of(overrides, command.sweeps)
    if "hydra/sweeper=optuna" in overrides and "hydra.sweeper.direction=maximize" not in overrides:
        raise ConfigError("hydra/sweeper=optuna looks for the smallest value: use hydra/sweeper=optuna_maximize")
    for job in jobs:
        config = compose_config(job)
        if "hydra/launcher=ray_jobs" in overrides:  # each job checks the node that it gets; this machine says nothing
            config.dry_run, config.cluster.address = True, config.cluster.address or "auto"
        if command.parsed.cfg:
            continue
        if config.trainer.push_to_hub is not None and command.sweeps and sweeper_chooses(parse_overrides(overrides)):
            raise ConfigError(
                f"trainer.push_to_hub={config.trainer.push_to_hub} would get the policy of each job that the sweeper "
                "chooses: leave it out, and push the best job by hand with hf upload"
            )
        checked = check_run(config)
        if command.sweeps:  # many jobs' problems do not fit in memory together: each job reads its own
            checked = replace(checked, problems=Problems(config.data, config.seed, config.verifier))
        command.checked[_own(job)] = checked
    pushed = [checked.config.trainer.push_to_hub for checked in command.checked.values()]
    if twice := next((repo for repo in pushed if repo is not None and pushed.count(repo) > 1), None):
        raise ConfigError(
            f"trainer.push_to_hub={twice} would get the policy of each of {pushed.count(twice)} jobs: "
            "name it by what differs, such as trainer.push_to_hub='OWNER/NAME-${seed}'"
        )
    return command


def _own(overrides: Sequence[str]) -> tuple[str, ...]:
    """A job's overrides without those of the whole sweep: Hydra passes the latter to some calls only."""
    return tuple(Job(0, tuple(each.lstrip("+") for each in overrides), Path()).own_overrides())


def launch(command: Command, runner: Runner) -> Outcome:
    """Hands the command line to Hydra, which makes the folder (or a sweep's folders) and calls `runner` in it.

    A job that fails does not end a sweep. Jobs that a sweep's folder holds finished are not run again.

    Raises:
        InputError: another process runs in that folder.
    """
    if command.sweeps and not command.parsed.cfg:
        return _launch_sweep(command, runner)
    outcome = Outcome()
    for checked in command.checked.values():  # before Hydra writes its own record over that of the run there
        refuse_owned(Path(checked.config.run_dir))

    def task(_composed: DictConfig) -> None:
        outcome.folder = Path(HydraConfig.get().runtime.output_dir)
        [checked] = command.checked.values()
        checked.config.run_dir = str(outcome.folder)  # Hydra's own clock names the folder
        try:
            _run(checked, runner)
        except InputError as error:
            outcome.error = error
        except Exception as error:
            logging.getLogger("expo_ray").exception("the run failed")
            outcome.error = error

    _hydra(task, command.arguments)
    return outcome


def _launch_sweep(command: Command, runner: Runner) -> Outcome:
    parsed, arguments = parse_overrides(command.parsed.overrides), command.arguments
    shared = compose_config([o.input_line or "" for o in parsed if not o.is_sweep_override()])
    folder = Path(shared.run_dir)
    if not any(o.key_or_group == "run_dir" for o in parsed):
        # Named once, so that the command in each summary.json is the one that resumes this sweep.
        arguments = [*arguments, f"run_dir={quoted(str(folder))}"]
    jobs = sum(1 for _ in sweep_jobs(command.parsed.overrides))  # 1 also if a sweeper chooses the values itself
    with owned(folder):
        ledger.begin(folder, shlex.join(["python", "-m", "expo_ray.train", *arguments]), jobs if jobs > 1 else None)
        return _run_jobs(command, runner, arguments, folder, shared.eval.objective)


def _run_jobs(command: Command, runner: Runner, arguments: list[str], folder: Path, objective: str) -> Outcome:
    def task(_composed: DictConfig) -> float | None:
        own, number = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().job.num
        mine = tuple(HydraConfig.get().overrides.task)
        job = Job(number, mine, own)
        config = job.config()

        def run() -> None:
            checked = command.checked.get(_own(mine))
            if checked is None:  # a sweeper that chooses the values itself names them only now
                checked = check_run(config)
            else:
                checked = replace(checked, plan=replace(checked.plan, config=config))
                if not config.dry_run:
                    check_start(checked.plan)  # the jobs before this one may have filled the disk
            _run(checked, runner)

        return run_in_turn(job, config, run, folder)

    try:
        _hydra(task, arguments)
    except SystemExit as stopped:  # Hydra has printed what a sweeper raised; what ended before is listed all the same
        if not stopped.code:
            raise
        return Outcome(folder, ConfigError("the sweeper failed, see above"), ledger.ends(folder), objective)
    return Outcome(folder, None, ledger.ends(folder), objective)


def _run(checked: Checked, runner: Runner) -> None:
    folder = Path(checked.config.run_dir)
    with owned(folder):
        write_plan(checked.plan, folder)
        if checked.config.dry_run:
            print((folder / "plan.txt").read_text(), end="")
        else:
            runner(checked, folder)


def _hydra(task: Callable[[DictConfig], float | None], arguments: list[str]) -> None:
    register()
    sys.argv[1:] = map(forced_mapping, arguments)
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(task)()


def _parse(arguments: list[str]) -> Namespace:
    parser: ArgumentParser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{message}: see python -m expo_ray.train --help")

    parser.error = error  # type: ignore[method-assign]
    return parser.parse_args(arguments)
