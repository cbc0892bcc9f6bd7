"""Measures one GPU: where a step's time goes, MFU, sampling, sync, mismatch.

    python -m bench.gpu model.path=FOLDER data.path=math_train.jsonl            # about 20 minutes on one card
    python -m bench.gpu --dry-run                                               # prints what would run; needs no card

Runs three separate processes: a training run of the level-5 recipe with engine and learner on the same card; the
rollout phase against bare `vllm.LLM.generate` (bench.rollout); a copy on the card of as many bytes as a sync moves.
Everything printed comes from the run's metrics.jsonl or is measured here.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from expo_ray.config.compose import compose_config
from expo_ray.files import read_lines
from expo_ray.preflight.plan import plan_text
from expo_ray.preflight.values import check_config

RECIPE = ["experiment=math_l5_qwen2.5_3b", "cluster=1xh100", "trainer.steps=24", "trainer.checkpoint_every=0"]
PART_S = 3600.0
UNMEASURED = 2
"""Number of first steps left out: kernels compile and caches fill."""
SHOWN = {
    "time/step": "s", "time/generate": "s", "time/verify": "s", "time/properties": "s", "time/update": "s",
    "time/sync": "s", "sync/seconds": "s", "sync/max_difference": "nats", "sync/mean_difference": "nats",
    "update/mfu": "share of the peak",
    "tokens/per_second_of_an_engine_card": "tokens/s", "tokens/per_second_of_a_rank": "tokens/s",
    "tokens/mean_sequence": "tokens", "mismatch/mean_abs": "nats", "mismatch/max": "nats",
}  # fmt: skip
GOAL_OF_COPY = 0.7
"""Share of the speed of a device-to-device copy of the same bytes."""


def commands(overrides: list[str], folder: Path) -> dict[str, list[str]]:
    """Returns the parts' commands by name."""
    python = [sys.executable, "-m"]
    return {
        "training": [*python, "expo_ray.train", *RECIPE, *overrides, f"run_dir={folder}"],
        "sampling": [*python, "bench.rollout", "4", *RECIPE, *overrides, "cluster.placement=disaggregated"],
        "copy": [*python, "bench.gpu", "--copy-bytes"],
    }


def training_figures(folder: Path) -> dict[str, float]:
    """Returns each shown metric's median over the measured steps, without metrics that no step has.

    Args:
        folder: the run folder.
    """
    steps = read_lines(folder / "metrics.jsonl")[UNMEASURED:]
    found = {name: [line[name] for line in steps if line.get(name) is not None] for name in SHOWN}
    figures = {name: statistics.median(values) for name, values in found.items() if values}
    return figures | {"sync/bytes": float(steps[-1]["sync/bytes"])}


def copy_seconds(size: int) -> float:
    """Returns the time in seconds of a copy of `size` bytes within the card's memory, best of 10."""
    import torch

    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts one after the other, prints their figures and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="plan and print, start nothing")
    parser.add_argument("--copy-bytes", type=int, metavar="N", help="only measure the card's copy of N bytes")
    parser.add_argument(
        "--folder",
        type=Path,
        help="for the run and its one checkpoint, 46 GiB with 3 B weights (default: a new one in /tmp)",
    )
    chosen, overrides = parser.parse_known_args(arguments)
    if chosen.copy_bytes:
        print(copy_seconds(chosen.copy_bytes))
        return 0
    folder = (chosen.folder or Path(mkdtemp(prefix="bench_gpu_"))).absolute() / "run"
    parts = commands(overrides, folder)
    if chosen.dry_run:
        print(plan_text(check_config(compose_config([*RECIPE, *overrides, f"run_dir={folder}", "dry_run=true"]))))
        for name, command in parts.items():
            print(f"{name}: {' '.join(command)}")
        return 0
    subprocess.run(parts["training"], check=True, timeout=PART_S)
    figures = training_figures(folder)
    for name, value in figures.items():
        print(f"{name:<40} {value:.4g} {SHOWN.get(name, 'bytes')}")
    size = int(figures["sync/bytes"])
    copy = float(subprocess.check_output([*parts["copy"], str(size)], timeout=PART_S, text=True))
    print(f"a copy of these {size / 2**30:.2f} GiB on the card takes {copy:.4f} s")
    print(
        f"sync: {copy / figures['sync/seconds']:.2f} of what the copy allows (goal {GOAL_OF_COPY}, or 0.2 s for 0.6 B)"
    )
    subprocess.run(parts["sampling"], check=True, timeout=PART_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
