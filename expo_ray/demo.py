"""`python -m expo_ray.demo [key=value ...]`: the whole pipeline in minutes, on the toy task.

GRPO and ExP-GRPO from the same base model, on the same prompts, for the same number of updates. Ends with a
table by level, a PNG of the curves, and the folder of both runs as the last line.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.driver.actors import WarmActors
    from expo_ray.preflight.checks import Checked

ALGORITHMS = ("grpo", "exp_grpo")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0; 1: a run failed; 2: bad input; 130: it was stopped."""
    overrides = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        return 0
    from expo_ray.command import end_in_a_sentence

    return end_in_a_sentence(lambda: _demo(overrides))


def _demo(overrides: list[str]) -> int:
    from expo_ray.config.compose import compose_config
    from expo_ray.preflight.checks import check_run

    folder = Path("runs/demo", datetime.now().strftime("%Y-%m-%d_%H-%M-%S")).absolute()
    runs = [
        check_run(compose_config(["experiment=demo", f"algo={name}", *overrides, f"run_dir={folder / name}"]))
        for name in ALGORITHMS
    ]

    from expo_ray.driver.actors import WarmActors  # imports Ray, which bad input need not wait for

    warm = WarmActors()
    try:
        finished = all(_train(checked, warm) for checked in runs)
    finally:
        warm.close()
    if finished:
        _show(folder)
    print(folder)
    return 0 if finished else 130


def _train(checked: "Checked", warm: "WarmActors") -> bool:
    """Trains one policy; returns False if the run was stopped before its end."""
    from expo_ray.driver.run import run
    from expo_ray.files import read_summary
    from expo_ray.preflight.plan import write_plan
    from expo_ray.runtime.journal import owned

    folder = Path(checked.config.run_dir)
    with owned(folder):
        write_plan(checked.plan, folder)
        run(checked, folder, warm)
    return bool(read_summary(folder)["finished"])


def _show(folder: Path) -> None:
    from rich.console import Console

    from expo_ray.reporting.curves import draw_curves
    from expo_ray.reporting.runs import read_run
    from expo_ray.reporting.terminal import table_by_level

    runs = [read_run(folder / algorithm) for algorithm in ALGORITHMS]
    draw_curves(runs, folder / "curves.png")
    Console().print(table_by_level(runs, runs[0].config.eval.samples))
    print(f"curves: {folder / 'curves.png'}")


if __name__ == "__main__":
    sys.exit(main())
