"""Runs one side as a separate process and reads when its updates ended."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.trl.compare import SideRun
from expo_ray.files import read_lines

REPOSITORY = Path(__file__).resolve().parents[2]
TRL_PYTHON = REPOSITORY / ".venv-trl" / "bin" / "python"
POLL_S = 0.02
WAIT_S = 3600.0
"""Bound on one run of either side."""


class SideFailed(RuntimeError):
    """A side did not finish its updates; the message ends with its last output."""


def run_ours(overrides: list[str], updates: int, seed: int, folder: Path) -> SideRun:
    """Runs the users' training command. An update ends when its line appears in metrics.jsonl."""
    arguments = [*overrides, f"trainer.steps={updates}", f"seed={seed}", f"run_dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    began = time.time()
    ends: list[float] = []
    process = _start([sys.executable, "-m", "expo_ray.train", *arguments], environment, folder.with_suffix(".log"))
    metrics = folder / "metrics.jsonl"
    try:
        while len(ends) < updates:
            lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            ends += [time.time()] * (lines - len(ends))
            _check(process, began, folder.with_suffix(".log"), finished=len(ends) == updates)
            time.sleep(POLL_S)
        _finish(process, folder.with_suffix(".log"))
    finally:
        _end(process)
    steps = read_lines(metrics)
    counts = {int(step["completions/total"]) for step in steps}
    if len(counts) != 1:
        raise SideFailed(f"the steps had {sorted(counts)} completions; all steps must have the same number")
    return SideRun(
        began=began,
        ends=tuple(ends),
        step_tokens=tuple(int(step["tokens/generated"]) for step in steps),
        completions_per_step=counts.pop(),
        longest=0,
    )


def run_trl(spec: dict[str, Any], threads: int, micro_batch: int, folder: Path) -> SideRun:
    """Runs GRPOTrainer in .venv-trl with the given number of OpenMP threads."""
    if not TRL_PYTHON.is_file():
        raise SideFailed(f"{TRL_PYTHON} does not exist: run bench/trl/setup.sh")
    folder.mkdir(parents=True, exist_ok=True)
    asked, answered, log = folder / "spec.json", folder / "result.json", folder / "trl.log"
    asked.write_text(json.dumps(spec | {"micro_batch": micro_batch}))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    began = time.time()
    process = _start([str(TRL_PYTHON), "-m", "bench.trl.peer", str(asked), str(answered)], environment, log)
    try:
        _finish(process, log)
    finally:
        _end(process)
    result = json.loads(answered.read_text())
    if result["threads"] != threads:
        raise SideFailed(f"TRL ran with {result['threads']} threads instead of {threads}")
    return SideRun(
        began=began,
        ends=tuple(result["ends"]),
        step_tokens=tuple(result["step_tokens"]),
        completions_per_step=result["completions_per_step"],
        longest=result["longest"],
    )


def _start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def _check(process: subprocess.Popen[bytes], began: float, log: Path, finished: bool) -> None:
    if process.poll() is not None and not finished:
        raise SideFailed(f"ended with code {process.returncode} before its last update: {_last_lines(log)}")
    if time.time() - began > WAIT_S:
        raise SideFailed(f"not finished within {WAIT_S:.0f} s: {_last_lines(log)}")


def _finish(process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        code = process.wait(timeout=WAIT_S)
    except subprocess.TimeoutExpired as error:
        raise SideFailed(f"not finished within {WAIT_S:.0f} s: {_last_lines(log)}") from error
    if code:
        raise SideFailed(f"ended with code {code}: {_last_lines(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its children if it is still running."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)


def _last_lines(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-6:])[-800:]
