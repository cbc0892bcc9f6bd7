"""A worker that stops answering in mid-sync, and a disk that fills up, on the whole pipeline."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expo_ray.checkpoint.manifest import damage
from tests.chaos.compare import lines, policy_digest

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 6
SMALL = [
    "experiment=demo",
    f"trainer.steps={STEPS}",
    "trainer.prompts_per_step=8",
    "trainer.checkpoint_every=2",
    "eval.max_problems=2",
    "eval.before=false",
    "logging.tensorboard=false",
]

pytestmark = pytest.mark.slow


def start(folder: Path, *more: str) -> subprocess.Popen:
    with folder.with_suffix(".stderr").open("wb") as log:
        command = [sys.executable, "-m", "expo_ray.train", *SMALL, *more, f"run_dir={folder}"]
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=log)


def status(folder: Path) -> dict:
    path = folder / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"phase": "", "step": -1}


def until(holds, process: subprocess.Popen, idle: float = 0.02, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, "the run ended early"
        assert time.monotonic() < deadline, "the wait was too long"
        time.sleep(idle)


def events(folder: Path, kind: str) -> list[dict]:
    path = folder / "events.jsonl"
    return [line for line in lines(path) if line["event"] == kind] if path.exists() else []


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder).wait(timeout=500) == 0
    return folder


def test_an_engine_that_stops_in_mid_sync_is_cut_off_named_and_replaced(whole, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "sync.timeout_s=10", "trainer.wait_s=120")
    stopped = None
    until(lambda: status(folder)["step"] >= 1, process)
    while stopped is None:
        until(lambda: status(folder)["phase"] == "sync" and status(folder)["step"] >= 1, process, idle=0.001)
        pid = status(folder)["actors"]["rollout-0"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        time.sleep(1.0)
        if status(folder)["phase"] != "sync":  # it had taken its weights already
            os.kill(pid, signal.SIGCONT)
            stopped = None
    until(lambda: bool(events(folder, "lost")), process)
    assert time.monotonic() - stopped < 10 + 5 + 15 + 20, "sync.timeout_s, its grace, the question who is there, slack"
    assert process.wait(timeout=400) == 0
    (lost,) = events(folder, "lost")
    assert lost["actor"] == "rollout-0"
    assert "rollout-0" in lost["what"]
    assert "within 10 s" in lost["what"]
    assert not Path(f"/proc/{pid}").exists(), "the stopped process is gone"
    assert policy_digest(folder, STEPS) == policy_digest(whole, STEPS)


def test_a_learner_that_stops_answering_is_a_bounded_wait_and_the_group_starts_again(whole, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "trainer.wait_s=45")
    until(lambda: status(folder)["step"] >= 3 and status(folder)["phase"] == "update", process, idle=0.001)
    pid = status(folder)["actors"]["learner-1"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: bool(events(folder, "lost")), process)
    assert time.monotonic() - stopped < 45 + 40 + 20, "trainer.wait_s, the wait for news of the others, slack"
    (lost,) = events(folder, "lost")
    assert "learner-1" in lost["ranks"]
    assert "learner-1 (pid" in lost["what"], "process and node are named"
    assert process.wait(timeout=400) == 0
    assert "1 of trainer.max_restarts=3" in events(folder, "restarted")[0]["what"]
    assert not Path(f"/proc/{pid}").exists(), "the stopped process is gone"
    assert policy_digest(folder, STEPS) == policy_digest(whole, STEPS)


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
    process = start(folder)
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
