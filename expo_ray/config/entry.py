"""What `python -m expo_ray.train` does around a run: check every job first, let Hydra make the folder, tell the end."""

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from expo_ray.config.check import check_config
from expo_ray.config.compose import CONF, compose_config, derive, parse_overrides, register, sweep_jobs
from expo_ray.config.errors import ConfigError, InputError
from expo_ray.config.hub import check_hub
from expo_ray.config.lengths import check_longest
from expo_ray.config.plan import Plan, plan_text
from expo_ray.config.schema import Config
from expo_ray.data.sources import load_problems

Job = Callable[[Config, Path], None]


@dataclass
class Outcome:
    """How the jobs of one command ended."""

    folder: Path | None = None
    """Of the run, or of the whole sweep."""
    errors: list[tuple[Path, Exception]] = field(default_factory=list)


def check_arguments(arguments: list[str]) -> Namespace:
    """Parses a command line and checks every job that it asks for; makes no folder.

    Raises:
        InputError: the first thing that is wrong, in one sentence.
    """
    parsed = _parse(arguments)
    multirun = parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides
    jobs = sweep_jobs(parsed.overrides) if multirun else [parsed.overrides]
    if not multirun:
        for override in parse_overrides(parsed.overrides):
            if override.is_sweep_override():
                raise ConfigError(f"'{override.input_line}' names several values: add -m to run each of them")
    for overrides in jobs:
        config = compose_config(overrides)
        if not parsed.cfg:
            _check(config)
    return parsed


def launch(arguments: list[str], job: Job) -> Outcome:
    """Hands the command line to Hydra, which makes the folder (or a sweep's folders) and calls `job` in it.

    A job that fails does not end a sweep: its error is in the outcome, its traceback in its logs/driver.log.
    """
    outcome = Outcome()

    def task(composed: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        outcome.folder = Path(HydraConfig.get().sweep.dir).absolute() if sweep else folder
        try:
            _run(composed, folder, job)
        except InputError as error:
            outcome.errors.append((folder, error))
        except Exception as error:
            logging.getLogger("expo_ray").exception("the run failed")
            outcome.errors.append((folder, error))

    register()
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")(task)()
    return outcome


def prepare_folder(config: Config, folder: Path) -> Plan:
    """Writes config.yaml (resolved) and plan.txt into the run's folder and gives the plan."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = check_config(config)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    (folder / "plan.txt").write_text(plan_text(plan))
    return plan


def _run(composed: DictConfig, folder: Path, job: Job) -> None:
    config: Any = OmegaConf.to_object(composed)
    config.run_dir = str(folder)
    _check(derive(config))
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
        check_hub(config)


def _parse(arguments: list[str]) -> Namespace:
    parser: ArgumentParser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{message}: see python -m expo_ray.train --help")

    parser.error = error  # type: ignore[method-assign]
    return parser.parse_args(arguments)
