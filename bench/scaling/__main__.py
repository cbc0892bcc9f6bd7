"""The scaling model (docs/scaling.md).

    python -m bench.scaling measure [--folder runs/bench_scaling] [KEY=VALUE ...]   two-core runs of several sizes
    python -m bench.scaling validate --fit RUN ... --predict RUN ...                costs from some, steps of others
    python -m bench.scaling curve [--lengths SAMPLES.jsonl] [--figure FILE]         8 to 512 GPUs

`validate` ends with exit code 1 where a predicted step is off by more than 15 %. A RUN is a run folder.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.training import STEPS_ONLY, train
from expo_ray.config.errors import InputError

BAR = 0.15
STEPS = 10
JOBS = {
    "sizes": ("algo=grpo,exp_grpo", "trainer.prompts_per_step=24,64,128"),
    "explanations": ("algo=exp_grpo", "rollout.explanations_per_prompt=2,4"),
    "groups": ("algo=grpo", "rollout.samples_per_prompt=8"),
}
"""Sweeps of `measure`."""
FITTED = ("sizes/0", "sizes/2", "sizes/3", "sizes/5")
"""The runs that `measure` says to fit on: the smallest and the largest of both algorithms."""
SETTINGS = (
    "experiment=demo",
    f"trainer.steps={STEPS}",
    *STEPS_ONLY,
    "logging.samples_per_step=16",
)


def measure(folder: Path, overrides: list[str]) -> int:
    """Runs the sweeps, and says how to go on. Finished jobs of an earlier call are kept."""
    for name, keys in JOBS.items():
        train(["-m", *SETTINGS, *keys, *overrides, f"run_dir={folder / name}"])
    runs = sorted(str(file.parent.relative_to(folder)) for file in folder.glob("*/*/metrics.jsonl"))
    held_out = [run for run in runs if run not in FITTED]
    fitted, others = (" ".join(str(folder / run) for run in some) for some in (FITTED, held_out))
    print(f"python -m bench.scaling validate --fit {fitted} --predict {others}")
    return 0


def validate(fitted: Sequence[Path], held_out: Sequence[Path]) -> int:
    """Prints predicted and measured seconds a step. Returns the exit code."""
    from bench.scaling.fit import fit, predict
    from bench.scaling.measured import read_measured

    known = [read_measured(folder) for folder in fitted]
    costs = fit(known)
    engine = costs.engine
    print(
        f"an engine's iteration: {engine.per_iteration * 1e3:.2f} ms, and {engine.per_sequence * 1e6:.0f} us for each "
        f"sequence; a batch {engine.per_batch:.2f} s; update {costs.update[0]:.2f} s and "
        f"{costs.update[1] * 1e3:.1f} ms for 1,000 tokens and pass; sync {costs.sync:.2f} s"
    )
    print("| run | prompts | samples + explanations | predicted s | measured s | error |\n|---|---|---|---|---|---|")
    worst = 0.0
    for kind, runs in (("fit", known), ("held out", [read_measured(folder) for folder in held_out])):
        for run in runs:
            found, work = predict(costs, run), run.work
            print(
                f"| {kind}: {run.name} | {work.prompts} | {work.samples} + {work.explanations} | "
                f"{found.predicted['step']:.2f} | {found.measured['step']:.2f} | {found.error:+.1%} |"
            )
            worst = max(worst, abs(found.error) if kind == "held out" else 0.0)
    print(f"largest error of a held-out run: {worst:.1%}; bar {BAR:.0%}")
    return 1 if worst > BAR else 0


def curve(lengths: Path | None, figure: Path | None) -> int:
    """Prints the table, and draws the figure where a file is named."""
    from bench.scaling.curve import curves, draw, table

    drawn: list[int] = []
    if lengths is not None:
        samples = [json.loads(line) for line in lengths.read_text(encoding="utf-8").splitlines()]
        drawn = [sample["tokens"] for sample in samples if "tokens" in sample]
    found = curves(drawn)
    print("\n".join(table(found)))
    if figure is not None:
        draw(found, figure)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure").add_argument("--folder", type=Path, default=Path("runs/bench_scaling"))
    validation = commands.add_parser("validate")
    validation.add_argument("--fit", type=Path, nargs="+", required=True)
    validation.add_argument("--predict", type=Path, nargs="+", required=True)
    gpus = commands.add_parser("curve")
    gpus.add_argument("--lengths", type=Path)
    gpus.add_argument("--figure", type=Path)
    arguments, overrides = parser.parse_known_args()
    if overrides and arguments.command != "measure":
        parser.error(f"unknown: {' '.join(overrides)}")
    try:
        if arguments.command == "measure":
            return measure(arguments.folder.absolute(), overrides)
        if arguments.command == "validate":
            return validate(arguments.fit, arguments.predict)
        return curve(arguments.lengths, arguments.figure)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
