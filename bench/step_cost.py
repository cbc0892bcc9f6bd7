"""How much self-explanations add to a step, and how long a step waits for verification.

    python -m bench.step_cost cost [--pairs 4] [--steps 8] [KEY=VALUE ...]    GRPO and ExP-GRPO by turns, same prompts
    python -m bench.step_cost verify RUN_FOLDER ...                           share of step time that waits for verdicts

`cost` runs one sweep whose jobs alternate between the two algorithms on the same actors; the learning rate is so small
that both stay at the base model. Bars: ExP-GRPO's step takes at most (G + explanations) / G times GRPO's plus 10 %;
verification that does not overlap other phases takes under 5 % of step time. Exit code: 0, or 1 if a bar is missed.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, median

from bench.training import STEPS_ONLY, train
from expo_ray.reporting.runs import RunFolder, read_run

ALGORITHMS = ("grpo", "exp_grpo")
SLACK = 1.10
VERIFY_BAR = 0.05
WARM_STEPS = 1


def allowed(samples: int, explanations: int) -> float:
    """Returns the largest ratio of step times that the bar allows."""
    return (samples + explanations) / samples * SLACK


def pair_ratios(runs: Sequence[RunFolder]) -> list[float]:
    """Returns ExP-GRPO's median step time over GRPO's for alternating runs: GRPO, ExP-GRPO, GRPO, ...

    Raises:
        ValueError: the runs do not alternate, a pair's prompts differ, or a run has no step after the warm-up.
    """
    ratios = []
    for plain, explained in zip(runs[::2], runs[1::2], strict=True):
        if (plain.config.algo.name, explained.config.algo.name) != ALGORITHMS:
            raise ValueError(f"{plain.path} and {explained.path} are not {' and '.join(ALGORITHMS)}")
        if plain.config.seed != explained.config.seed or plain.steps_done != explained.steps_done:
            raise ValueError(f"{plain.path} and {explained.path} did not see the same prompts")
        ratios.append(_step(explained) / _step(plain))
    return ratios


def verify_share(run: RunFolder) -> float:
    """Returns the share of step time in phase verify; time that overlaps other phases does not count.

    Raises:
        ValueError: no step is recorded.
    """
    steps = list(run.curve("time/step").values())
    verifying = list(run.curve("time/verify").values())
    if not steps:
        raise ValueError(f"{run.path} has no step")
    return sum(verifying) / sum(steps)


def _step(run: RunFolder) -> float:
    seconds = list(run.curve("time/step").values())
    if len(seconds) <= WARM_STEPS:
        raise ValueError(f"{run.path} has {len(seconds)} steps, but the first {WARM_STEPS} does not count")
    return median(seconds[WARM_STEPS:])


def cost(pairs: int, steps: int, overrides: list[str], folder: Path) -> int:
    """Runs the sweep, prints the ratios and returns the exit code."""
    arguments = [
        "-m",
        "experiment=demo",
        f"seed={','.join(str(seed) for seed in range(pairs))}",
        f"algo={','.join(ALGORITHMS)}",  # the last key varies fastest, so the algorithms alternate
        f"trainer.steps={steps}",
        "trainer.resume=never",
        *STEPS_ONLY,
        *overrides,
        f"run_dir={folder}",
    ]
    train(arguments)
    runs = [read_run(folder / str(job)) for job in range(2 * pairs)]
    ratios = pair_ratios(runs)
    rollout = runs[1].config.rollout
    bar = allowed(rollout.samples_per_prompt, rollout.explanations_per_prompt)
    for name, of in zip(ALGORITHMS, (runs[::2], runs[1::2]), strict=True):
        tokens = fmean(value for run in of for value in run.curve("tokens/generated").values())
        print(f"{name:9} {median(map(_step, of)):.3f} s/step, {tokens:.0f} tokens generated")
    found = median(ratios)
    print(f"ratio of pairs: min {min(ratios):.3f}, median {found:.3f}, max {max(ratios):.3f}; bar {bar:.3f}")
    shares = [verify_share(run) for run in runs]
    print(f"waiting for verdicts: {max(shares):.1%} of step time at most; bar {VERIFY_BAR:.0%}")
    print(folder)
    return 1 if found > bar or max(shares) >= VERIFY_BAR else 0


def verify(folders: Sequence[Path]) -> int:
    """Prints each run's share and returns the exit code."""
    shares = [verify_share(read_run(folder)) for folder in folders]
    for folder, share in zip(folders, shares, strict=True):
        print(f"{share:6.2%} {folder}")
    return 1 if max(shares) >= VERIFY_BAR else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.step_cost", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measured = commands.add_parser("cost")
    measured.add_argument("--pairs", type=int, default=4)
    measured.add_argument("--steps", type=int, default=8)
    measured.add_argument("--folder", type=Path, default=Path("runs/bench_step_cost"))
    commands.add_parser("verify").add_argument("folders", type=Path, nargs="+")
    arguments, overrides = parser.parse_known_args()
    if arguments.command == "verify":
        return verify(arguments.folders)
    folder = (arguments.folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute()
    return cost(arguments.pairs, arguments.steps, overrides, folder)


if __name__ == "__main__":
    sys.exit(main())
