"""python -m expo_ray.train [group=choice] [key=value] [-m]: composes the configuration, checks it, runs it.

Everything is checked before a folder is made. Wrong input: one sentence on standard error, exit code 2.
The last line on standard output is the absolute path of the run's folder.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.config.schema import Config

HELP = """\
usage: python -m expo_ray.train [group=choice ...] [key=value ...] [-m] [--cfg job]

Trains a policy on verifiable problems with GRPO, ExP-GRPO, ExP-DPO or one of their baselines.

  experiment=NAME   a recipe of conf/experiment, such as math_l5_qwen2.5_3b
  algo=NAME         grpo, exp_grpo (default), sft_gt_grpo, exp_dpo, dpo_gt, explanation_sft
  model=NAME        a choice of conf/model;     model.path=FOLDER   a Hugging Face folder or hub id
  data=NAME         a choice of conf/data;      data.path=FILE      problems as JSON Lines
  profile=cpu|gpu   default: gpu where a GPU is visible
  cluster=NAME      resources to plan for, a choice of conf/cluster
  trainer.steps=N   trainer.resume=auto|never|PATH   seed=N   run_name=NAME   run_dir=FOLDER
  dry_run=true      print what would run where, start nothing
  -m                multirun: algo=grpo,exp_grpo seed=0,1,2 runs each combination
  --cfg job         print the composed configuration

All keys: expo_ray/config/schema.py. The last line printed is the run's folder.
"""


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0; 1: the run failed; 2: wrong input; 130: it was stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    from expo_ray.config.entry import check_arguments, launch
    from expo_ray.config.errors import InputError

    try:
        check_arguments(arguments)
    except InputError as error:
        _tell(error)
        return 2
    outcome = launch(arguments, _job)
    code = 0
    for folder, failure in outcome.errors:
        if isinstance(failure, InputError):
            _tell(failure)
            code = max(code, 2)
        else:
            _tell(f"{type(failure).__name__}: {failure} (traceback: {folder}/logs/driver.log)")
            code = 1
    if outcome.folder is not None:
        print(outcome.folder, flush=True)
        code = code or _stopped(outcome.folder)
    return code


def _stopped(folder: Path) -> int:
    """130, as of a command ended by Ctrl-C, where the run was stopped before its last step; else 0."""
    summary = folder / "summary.json"
    return 130 if summary.exists() and not json.loads(summary.read_text())["finished"] else 0


def _tell(problem: object) -> None:
    print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)


def _job(config: "Config", folder: Path) -> None:
    from expo_ray.driver.session import run

    run(config, folder)


if __name__ == "__main__":
    sys.exit(main())
