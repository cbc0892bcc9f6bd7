"""From the command to the first generated token: `python -m bench.startup [--runs 3] [KEY=VALUE ...]`.

Each run is `python -m expo_ray.train experiment=demo` for one step. Its status.json says when the first generation
began and ended; the first token comes in between, and the end is compared with the bar of 60 s. The first run may read
its packages from disk while later ones find them in the page cache, so every run is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

BAR_S = 60.0
POLL_S = 0.01
WAIT_S = 900.0


@dataclass(frozen=True)
class Start:
    """Seconds from the command to each moment."""

    folder: float
    """The configuration is checked and the run has a folder."""
    actors: float
    """Actors are up; the first phase of the loop or the first evaluation begins."""
    asked: float
    """The engines are asked for the first completions; there is no token yet."""
    answered: float
    """They have answered, so the first token exists."""


def moments(changes: list[tuple[str, float]], began: float, folder: float) -> Start | None:
    """Derives the moments from status.json's phases; None until the first generation has ended.

    Args:
        changes: `(phase, since)` in order, in seconds since the epoch.
        began: when the command started.
        folder: when the run's folder appeared.
    """
    phases = [phase for phase, _ in changes]
    if "generate" not in phases:
        return None
    at = phases.index("generate")
    if at + 1 == len(changes):
        return None
    up = next(since for phase, since in changes if phase != "starting")
    return Start(folder - began, up - began, changes[at][1] - began, changes[at + 1][1] - began)


def measure(overrides: list[str], folder: Path) -> Start:
    """Runs the command once.

    Raises:
        RuntimeError: it ended, or took 15 minutes, without a first token.
    """
    arguments = [
        "experiment=demo",
        "trainer.steps=1",
        "trainer.resume=never",
        "eval.before=false",
        "eval.samples=1",
        "eval.max_problems=1",
        "logging.progress=false",
        *overrides,
        f"run_dir={folder}",
    ]
    began, there = time.time(), 0.0
    changes: list[tuple[str, float]] = []
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "expo_ray.train", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
    try:
        while (found := moments(changes, began, there)) is None:
            if process.poll() is not None or time.time() - began > WAIT_S:
                last = log.read_text(errors="replace").splitlines()[-3:]
                raise RuntimeError(f"no first token (exit code {process.poll()}): {' | '.join(last)}")
            there = there or (time.time() if folder.exists() else 0.0)
            if (status := _status(folder)) is not None and status not in changes[-1:]:
                changes.append(status)
            time.sleep(POLL_S)
        process.wait(timeout=WAIT_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=120)
    return found


def _status(folder: Path) -> tuple[str, float] | None:
    file = folder / "status.json"
    if not file.exists():
        return None
    found = json.loads(file.read_text())  # replaced atomically, so never half a file
    return found["phase"], found["since"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_startup"))
    arguments, overrides = parser.parse_known_args()
    folder = (arguments.folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute()
    folder.mkdir(parents=True)
    found = []
    for number in range(arguments.runs):
        start = measure(overrides, folder / str(number))
        found.append(start)
        print(
            f"run {number}: folder {start.folder:.1f} s, actors up {start.actors:.1f} s, first generation asked "
            f"{start.asked:.1f} s, answered {start.answered:.1f} s"
        )
    worst, typical = max(start.answered for start in found), median(start.answered for start in found)
    print(f"first token within {typical:.1f} s (median), {worst:.1f} s (slowest); bar {BAR_S:.0f} s")
    return 1 if worst > BAR_S else 0


if __name__ == "__main__":
    sys.exit(main())
