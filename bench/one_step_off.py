"""One-step-off against in-turn training: steps per minute, and whether the result is the same.

    python -m bench.one_step_off                 # three seeds, alternating; about 40 minutes on two cores
    python -m bench.one_step_off --seeds 1 trainer.steps=10

One core for the engine and one for the learner. The gain is largest if both phases take equally long, so the largest
possible gain, with the shorter phase hidden completely, is printed too.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

from expo_ray.files import read_lines, read_summary

BAR = 1.6
SETTINGS = ["experiment=demo", "learner.ranks=1", "rollout.max_sequences=256", "logging.trackers=[]"]
UNMEASURED = 2
"""Number of first steps left out: caches fill."""
RUN_S = 3600.0


def train(folder: Path, seed: int, ahead: int, more: list[str]) -> dict:
    """Runs the training command; returns medians of its step and phases in seconds, and its final pass@k."""
    options = [f"seed={seed}", f"trainer.async_steps={ahead}", f"run_dir={folder}", *more]
    command = [sys.executable, "-m", "expo_ray.train", *SETTINGS, *options]
    subprocess.run(command, check=True, timeout=RUN_S, stdout=subprocess.DEVNULL)
    steps = read_lines(folder / "metrics.jsonl")[UNMEASURED:]
    sampling = "time/beside_generate" if ahead else "time/generate"
    names = {"step": "time/step", "generate": sampling, "update": "time/update", "sync": "time/sync"}
    found = {name: statistics.median(line[key] for line in steps) for name, key in names.items()}
    evaluation = read_summary(folder)["evaluation"]
    found["pass"] = evaluation["pass_at_k"]["all"][str(evaluation["samples"])]
    return found


def main() -> int:
    """Prints a line per run and the ratio. Returns 1 if it is below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments, more = parser.parse_known_args()
    folder = Path(mkdtemp(prefix="bench_one_step_off_"))
    ratios: list[float] = []
    results: dict[int, list[float]] = {0: [], 1: []}
    for seed in range(arguments.seeds):
        pair = {}
        for ahead in (0, 1) if seed % 2 == 0 else (1, 0):
            pair[ahead] = train(folder / f"{seed}_{ahead}", seed, ahead, more)
            results[ahead].append(pair[ahead]["pass"])
            figures = "  ".join(f"{name} {value:.3f}" for name, value in pair[ahead].items())
            print(f"seed {seed}  async_steps={ahead}  {figures}", flush=True)
        ratios.append(pair[0]["step"] / pair[1]["step"])
        phases = sorted((pair[0]["generate"], pair[0]["update"]))
        best = pair[0]["step"] / (pair[0]["step"] - phases[0])
        print(f"seed {seed}  {ratios[-1]:.2f} times the steps per minute; with the shorter phase hidden: {best:.2f}")
    ratio = statistics.median(ratios)
    print(f"steps per minute, one step off over in turn: {ratio:.2f} (median of {len(ratios)}; bar {BAR})")
    for ahead, passes in results.items():
        spread = f" ± {statistics.stdev(passes):.3f}" if len(passes) > 1 else ""
        print(f"async_steps={ahead}: final pass@k, all levels: {statistics.fmean(passes):.3f}{spread}")
    return int(ratio < BAR)


if __name__ == "__main__":
    sys.exit(main())
