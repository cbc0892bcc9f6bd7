"""What all stages are given, and how a stage reports what it found."""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = float(1 << 30)
MARK = "FIGURES "
"""Begins a line of a stage's output that holds figures as a JSON object."""


@dataclass(frozen=True)
class Setting:
    """Command line of `python -m bench.gpu`, as every stage gets it."""

    out: Path
    """Figures, logs and records go there."""
    work: Path
    """Models and run folders are made there; nothing of it is kept."""
    rehearse: bool = False
    """On a CPU, with models of a third of a million weights and a few steps: whether the stages run at all."""
    shape: str = "3b"
    """Which of `SHAPES` the random weights have."""
    weights: Path | None = None
    """A folder with real weights, for the stage `real`."""
    problems: Path | None = None
    """Problems as JSON Lines, for the stage `real`."""
    overrides: tuple[str, ...] = ()
    """Further key=value of the stage `real`."""

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def model(self) -> Path:
        """The folder of the random weights."""
        return self.work / "models" / ("rehearsal" if self.rehearse else self.shape)

    @property
    def where(self) -> list[str]:
        """Overrides that choose the hardware. Nothing may depend on how many cores the host has."""
        if self.rehearse:
            return ["profile=cpu", "learner.ranks=1", "rollout.kv_cache_gib=1", "trainer.wait_s=300"]
        return ["cluster=1xh100", "cluster.memory_gib_per_node=100"]


def tell(**figures: object) -> None:
    """Reports figures from within a stage; the runner writes them down at once."""
    print(MARK + json.dumps(figures), flush=True)


def figures_in(text: str) -> dict[str, Any]:
    """All figures in a stage's output; the last one of a name counts."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith(MARK):
            try:
                found |= json.loads(line.removeprefix(MARK))
            except ValueError:
                print(f"a line of figures was cut off: {line[:100]}", file=sys.stderr)
    return found


def output_of(*command: str) -> str:
    """What a command prints; in place of it, why it could not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return (done.stdout + done.stderr).strip()[-600:]


def timed(work: Callable[[], object], device: str, repeats: int = 10) -> float:
    """Median seconds of some repetitions after a first one."""
    import torch

    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


def copy_seconds(size: int, device: str) -> float:
    """Median seconds of a copy of so many bytes within the device's memory."""
    import torch

    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return timed(lambda: target.copy_(source), device)


OWNER = "BENCH_GPU_OWNER"
"""Environment variable by which the processes that a stage started are found, Ray's among them."""
FREE_MIB, FREE_S = 1500, 20.0


def owned() -> tuple[str, dict[str, str]]:
    """A new owner, and the environment to start its processes with."""
    owner = uuid.uuid4().hex
    return owner, {**os.environ, OWNER: os.environ.get(OWNER, "") + "," + owner}


def end_owned(owner: str) -> None:
    """Kills the processes of an owner and waits, within a bound, until the card is free again."""
    import psutil

    mine = []
    for process in psutil.process_iter():
        try:
            if owner in process.environ().get(OWNER, ""):
                process.kill()
                mine.append(process)
        except psutil.Error:
            continue  # it has ended, or belongs to another user
    psutil.wait_procs(mine, timeout=FREE_S)
    deadline = time.monotonic() + FREE_S
    while time.monotonic() < deadline:
        used = output_of("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
        if not used.isdigit() or int(used) < FREE_MIB:
            return
        time.sleep(0.5)
