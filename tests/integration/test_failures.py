"""What stops answering, and a disk that fills up, on the whole pipeline."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from expo_ray.checkpoint.manifest import damage
from tests.chaos.compare import policy_digest
from tests.integration.small_run import SMALL, STEPS, events, finish, kill, launch, start, status, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
WAIT_S = 45  # far above any phase of this run, on a busy machine too


def test_what_stops_answering_is_cut_off_named_and_replaced(small_run, tmp_path):
    """An engine in mid-sync, then a learner in mid-update, both by SIGSTOP: the end is that of an undisturbed run."""
    folder = tmp_path / "run"
    process = start(folder, "sync.timeout_s=10", f"trainer.wait_s={WAIT_S}")
    engine, stopped = stop_engine_in_sync(folder, process)
    until(lambda: len(events(folder, "lost")) == 1, process)
    assert time.monotonic() - stopped < 10 + 5 + 15 + 40, "sync.timeout_s, its grace, the question who is there, slack"

    until(lambda: status(folder)["step"] >= 3 and status(folder)["phase"] == "update", process, idle=0.001)
    learner = status(folder)["actors"]["learner-1"]["pid"]
    os.kill(learner, signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: len(events(folder, "lost")) == 2, process)
    assert time.monotonic() - stopped < WAIT_S + 40 + 40, "trainer.wait_s, the wait for news of the others, slack"
    assert process.wait(timeout=400) == 0

    first, second = events(folder, "lost")
    assert first["actor"] == "rollout-0"
    assert "rollout-0 did not finish phase" in first["what"]
    assert "within 10 s" in first["what"]
    assert "learner-1" in second["ranks"]
    assert "learner-1 (pid" in second["what"], "process and node are named"
    assert "1 of trainer.max_restarts=3" in events(folder, "restarted")[0]["what"]
    assert not Path(f"/proc/{engine}").exists() and not Path(f"/proc/{learner}").exists()
    assert policy_digest(folder, STEPS) == policy_digest(small_run, STEPS)


def test_two_runs_of_one_command_leave_each_other_alone(tmp_path):
    """In one folder the second is refused before it starts anything; in another it takes no checkpoint of the first.

    One small run, about a minute.
    """
    first, second = tmp_path / "first", tmp_path / "second"
    process = start(first)
    until(lambda: bool(events(first, "checkpoint")), process)
    process.send_signal(signal.SIGSTOP)  # so that it does not end meanwhile; it lives
    configured = (first / "config.yaml").stat().st_mtime_ns
    refused = finish(launch("expo_ray.train", *SMALL, f"run_dir={first}"))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: run_dir={first} belongs to process {process.pid} on ")
    assert refused.stderr.count("\n") == 1 and (first / "config.yaml").stat().st_mtime_ns == configured
    other = start(second)
    until(lambda: bool(events(second, "skipped")), other)
    kill(other)
    [skipped] = events(second, "skipped")
    assert f"{first} is skipped: process {process.pid} on " in skipped["what"] and "is running it" in skipped["what"]
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=400) == 0
    assert not (first / "owner.json").exists() and events(first, "lost") == []


def stop_engine_in_sync(folder: Path, process: subprocess.Popen) -> tuple[int, float]:
    """Stops the engine's process in the middle of a sync; returns its id and when."""
    while True:
        until(lambda: status(folder)["phase"] == "sync" and status(folder)["step"] >= 1, process, idle=0.001)
        pid = status(folder)["actors"]["rollout-0"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        time.sleep(1.0)
        if status(folder)["phase"] == "sync":
            return pid, stopped
        os.kill(pid, signal.SIGCONT)  # it had taken its weights already


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    path = disk / "filler"
    with path.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - leave)))
    return path


def test_a_full_disk_costs_a_checkpoint_and_never_an_earlier_one(small_disk):
    folder = small_disk / "run"
    process = start(folder, "logging.trackers=[]")
    until(lambda: status(folder)["step"] >= 0, process)
    filler = fill(small_disk, leave=3 << 20)  # a checkpoint has 6.5 MiB: the write breaks off half-way
    until(lambda: bool(events(folder, "skipped")), process)
    assert process.poll() is None, "the run goes on"
    filler.unlink()
    until(lambda: bool(events(folder, "checkpoint")), process)
    good = folder / "checkpoints" / f"step_{events(folder, 'checkpoint')[-1]['steps_done']:06d}"
    fill(small_disk, leave=2 << 20)
    assert process.wait(timeout=400) == 1, "the last checkpoint is missing, so the run failed"
    said = folder.with_suffix(".stderr").read_text()
    assert "error: CheckpointFailed: the checkpoint of step 6 could not be written" in said
    assert str(good) in said.splitlines()[-1]
    assert damage(good) is None
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")] == []
    skipped = events(folder, "skipped")
    assert any("No space left" in e["what"] or "file write failed" in e["what"] for e in skipped), skipped
