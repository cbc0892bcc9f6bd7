"""python -m expo_ray.train [group=choice] [key=value] [-m]: composes a configuration, checks it and trains.

Everything is checked before a folder is made. Bad input: one sentence on standard error, exit code 2.
The last line on standard output is the absolute path of the run's folder.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.driver.actors import WarmActors
    from expo_ray.entry import Outcome
    from expo_ray.preflight.checks import Checked

HELP = """\
usage: python -m expo_ray.train [group=choice ...] [key=value ...] [-m] [--cfg job]

Trains a policy on verifiable problems with GRPO, ExP-GRPO, ExP-DPO or one of their baselines.

  experiment=NAME   a recipe of conf/experiment, such as math_l5_qwen2.5_3b
  algo=NAME         {algorithms} (default: exp_grpo),
                    or package.module:Class (docs/algorithms/your_own.md)
  model=NAME        a choice of conf/model;     model.path=FOLDER   a Hugging Face folder or hub id
  data=NAME         a choice of conf/data;      data.path=FILE      problems: a file, folder or glob
  profile=cpu|gpu   default: gpu where a GPU is visible
  cluster=NAME      resources to plan for, a choice of conf/cluster
  trainer.steps=N   trainer.resume=auto|never|PATH   seed=N   run_name=NAME   run_dir=FOLDER
  dry_run=true      print what would run where, start nothing
  -m                sweep: algo=grpo,exp_grpo seed=0,1,2 runs each combination; with run_dir=FOLDER the same
                    command resumes the sweep; hydra/launcher=local|ray_jobs runs its jobs in parallel
  --cfg job         print the composed configuration

All keys: expo_ray/config/schema.py. All choices, your own conf/ included: expo-ray --help.
The last line printed is the run's folder.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command.

    Returns:
        Its exit code: 0; 1: the run failed; 2: bad input; 130: it was stopped; 143: SIGTERM ended its start.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        from expo_ray.config.algorithms import ALGORITHMS

        print(HELP.format(algorithms=", ".join(ALGORITHMS)), end="")
        return 0
    from expo_ray.command import end_by_signal

    return end_by_signal(lambda: _train(arguments))


def _train(arguments: list[str]) -> int:
    from expo_ray.config.errors import InputError
    from expo_ray.entry import check_arguments, launch

    try:
        command = check_arguments(arguments)
    except InputError as error:
        _report(error)
        return 2
    jobs = _Jobs()
    try:
        outcome = launch(command, jobs)
    except InputError as error:
        _report(error)
        return 2
    finally:
        jobs.close()
    code = _run_code(outcome) if outcome.sweep is None else _sweep_code(outcome)
    if outcome.folder is not None:
        print(outcome.folder, flush=True)
    return code


def _run_code(outcome: "Outcome") -> int:
    from expo_ray.config.errors import InputError

    folder, failure = outcome.folder, outcome.error
    if failure is None:
        return _stopped(folder) if folder is not None else 0
    if isinstance(failure, InputError):
        _report(failure)
        return 2
    _report(f"{type(failure).__name__}: {failure} (traceback: {folder}/logs/driver.log)")
    return 1


def _sweep_code(outcome: "Outcome") -> int:
    """Prints the jobs. Returns 1 if one failed, 130 if the sweep was stopped, else 0."""
    from rich.console import Console

    from expo_ray.sweep.job import Ended
    from expo_ray.sweep.ledger import sweep_table

    assert outcome.folder is not None and outcome.sweep is not None
    Console().print(sweep_table(outcome.sweep, outcome.folder, outcome.objective))
    for end in outcome.sweep:
        if end.ended == Ended.FAILED:
            _report(f"job {end.job}: {end.error}" + (f" (more: {end.log})" if end.log else ""))
    if outcome.error is not None:
        _report(outcome.error)
    endings = {end.ended for end in outcome.sweep}
    if Ended.FAILED in endings or outcome.error is not None:
        return 1
    return 130 if endings & {Ended.STOPPED, Ended.NOT_STARTED} else 0


def _stopped(folder: Path) -> int:
    """Returns 130, the code after Ctrl-C, if the run was stopped before its last step; else 0."""
    from expo_ray.files import read_summary

    return 130 if read_summary(folder).get("finished") is False else 0


def _report(problem: object) -> None:
    print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)


class _Jobs:
    """Runs jobs one after the other in this process, sharing actors between jobs that would start the same ones."""

    def __init__(self) -> None:
        self._warm: WarmActors | None = None

    def __call__(self, checked: "Checked", folder: Path) -> None:
        from expo_ray.driver.actors import WarmActors
        from expo_ray.driver.run import run

        self._warm = self._warm or WarmActors()
        run(checked, folder, self._warm)

    def close(self) -> None:
        if self._warm is not None:
            self._warm.close()


if __name__ == "__main__":
    sys.exit(main())
