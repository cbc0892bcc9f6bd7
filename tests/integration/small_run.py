"""A small run of the whole pipeline as a user starts it, and what its folder says during the run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.chaos.compare import lines

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 6
SMALL = [
    "experiment=demo",
    f"trainer.steps={STEPS}",
    "trainer.prompts_per_step=8",
    "trainer.checkpoint_every=2",
    "eval.max_problems=2",
    "algo.properties_every=2",
]


def start(folder: Path, *more: str) -> subprocess.Popen:
    """Starts it; what it prints goes to `<folder>.stdout` and `<folder>.stderr`."""
    with folder.with_suffix(".stderr").open("wb") as log, folder.with_suffix(".stdout").open("wb") as printed:
        command = [sys.executable, "-m", "expo_ray.train", *SMALL, *more, f"run_dir={folder}"]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=printed, stderr=log)


def launch(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a command of the package whose output `finish` collects."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 700) -> subprocess.CompletedProcess[str]:
    """Waits for the command's end; one that takes longer is ended, with all that it started."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill(process: subprocess.Popen[str]) -> None:
    """Kills a command and waits until its processes are gone, but for Ray's own agents, which take a minute."""
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in family if "Agent" not in child.name()]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    psutil.wait_procs(workers, timeout=60)


def status(folder: Path) -> dict:
    """Its status.json."""
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"phase": "", "step": -1}


def until(holds, process: subprocess.Popen, idle: float = 0.02, seconds: float = 400) -> None:
    """Waits until `holds()`, while the run goes on."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < deadline, "the wait was too long"
        time.sleep(idle)


def events(folder: Path, kind: str) -> list[dict]:
    """The lines of one kind in its events.jsonl."""
    path = folder / "events.jsonl"
    return [line for line in lines(path) if line["event"] == kind] if path.exists() else []
