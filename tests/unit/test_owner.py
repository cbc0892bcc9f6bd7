"""Who runs in a run folder: one process, whose checkpoints no other run takes while it lives."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf
from test_checkpoint import SAME, write

from expo_ray.checkpoint.find import find_checkpoint
from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config
from expo_ray.files import write_whole
from expo_ray.runtime import journal
from expo_ray.runtime.journal import OWNER, owned, owner_of
from expo_ray.train import main

OTHER = """
import sys, time
from pathlib import Path
from expo_ray.runtime.journal import owned
with owned(Path(sys.argv[1])):
    print("owns", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def another(tmp_path):
    """A process that owns run folders; the test may kill it."""
    started = []

    def own(folder: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", OTHER, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "owns\n"
        return process

    yield own
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def test_a_folder_has_one_owner_until_that_ends_or_dies(tmp_path, another):
    folder = tmp_path / "run"
    process = another(folder)
    with pytest.raises(ConfigError) as caught, owned(folder):
        pytest.fail("two processes own the folder")
    assert str(caught.value) == (
        f"run_dir={folder} belongs to process {process.pid} on {socket.gethostname()}, which is running: "
        "stop that run, or give another run_dir=FOLDER"
    )
    process.kill()
    process.communicate(timeout=30)
    assert (folder / OWNER).exists()
    for _ in range(2):  # and again after the first one has ended
        with owned(folder):
            assert json.loads((folder / OWNER).read_text())["pid"] == os.getpid()
        assert [path.name for path in folder.iterdir()] == []


def test_a_step_of_the_clock_ends_no_ownership(tmp_path, another, monkeypatch):
    process, name = another(tmp_path), f"on {socket.gethostname()}"
    written = json.loads((tmp_path / OWNER).read_text())
    booted = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600)  # a start by the clock is computed from it
    assert owner_of(tmp_path) == f"process {process.pid} {name}"
    monkeypatch.undo()
    process.send_signal(signal.SIGSTOP)
    earlier = {key: written[key] for key in ("host", "pid", "started", "machine")}  # as an earlier version wrote it
    write_whole(tmp_path / OWNER, json.dumps(earlier))
    assert owner_of(tmp_path) == f"process {process.pid} {name}"
    for key in ("started", "since_boot"):  # another process with that number
        write_whole(tmp_path / OWNER, json.dumps(written | {key: written[key] - 10}))
        assert (owner_of(tmp_path) is None) == (key == "since_boot")


@pytest.mark.parametrize("left", [None, "", '{"host": "h", "pid": 4, "started": 1, "machine": []}'])
def test_of_several_that_start_at_once_one_gets_the_folder(tmp_path, left):
    """Also where an owner that is gone has left its file; twenty times, as it is a matter of microseconds."""
    fork = multiprocessing.get_context("fork")
    for turn in range(20):
        folder = tmp_path / str(turn)
        folder.mkdir()
        if left is not None:
            (folder / OWNER).write_text(left)
            os.utime(folder / OWNER, (1.0, 1.0))
        start, end, claimed = fork.Barrier(4), fork.Barrier(4), fork.Queue()
        processes = [fork.Process(target=claim, args=(folder, start, end, claimed)) for _ in range(4)]
        for process in processes:
            process.start()
        assert sorted(claimed.get(timeout=60) for _ in processes) == [False, False, False, True]
        for process in processes:
            process.join(timeout=60)


def claim(folder: Path, start, end, claimed) -> None:
    start.wait(60)
    try:
        with owned(folder):
            claimed.put(True)
            end.wait(60)
    except ConfigError:
        claimed.put(False)
        end.wait(60)


def wait_for(holds, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("alive", [True, False])
def test_an_owner_on_another_machine_is_known_by_its_beat(tmp_path, monkeypatch, alive, capsys):
    monkeypatch.setattr(journal, "SILENT_S", 0.5)
    stored = {"host": "node7", "pid": 4, "started": 1.0, "machine": ["node7"], "beat": 0}
    write_whole(tmp_path / OWNER, json.dumps(stored))
    beat = threading.Timer(0.1, lambda: write_whole(tmp_path / OWNER, json.dumps(stored | {"beat": 1})))
    if alive:
        beat.start()
    assert owner_of(tmp_path) == ("process 4 on node7" if alive else None)
    assert "waiting up to 0 s for a sign of process 4 on node7" in capsys.readouterr().err
    beat.join() if alive else None
    os.utime(tmp_path / OWNER, (1.0, 1.0))  # long ago: no wait
    assert owner_of(tmp_path) is None and capsys.readouterr().err == ""


def test_the_owner_of_a_folder_that_cannot_be_written_is_known_by_its_beat(tmp_path, monkeypatch):
    """A neighbour's run may be another user's."""

    def refused(*_args, **_keys):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(journal, "SILENT_S", 0.1)
    write_whole(tmp_path / OWNER, json.dumps({"host": "node7", "pid": 4, "started": 1.0, "machine": ["node7"]}))
    monkeypatch.setattr(Path, "touch", refused)
    assert owner_of(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_what_is_no_owners_file_owns_nothing(tmp_path, text):
    (tmp_path / OWNER).write_text(text)
    assert owner_of(tmp_path) is None
    with owned(tmp_path):
        assert owner_of(tmp_path) is None  # this process itself


def test_a_run_that_lost_its_folder_ends_and_one_whose_file_is_gone_writes_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "BEAT_S", 0.05)
    monkeypatch.setattr(journal, "AGAIN_S", 0.05)
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(journal.os, "kill", lambda *arguments: killed.append(arguments))
    with owned(tmp_path):
        (tmp_path / OWNER).unlink()
        wait_for((tmp_path / OWNER).exists)
        taken = {"host": "node7", "pid": 4, "started": 1.0, "machine": ["node7"], "beat": 0}

        def is_noticed() -> bool:
            write_whole(tmp_path / OWNER, json.dumps(taken))  # again, as a beat that was under way may have replaced it
            return len(killed) == 2

        wait_for(is_noticed)
    assert killed == [(os.getpid(), signal.SIGINT)] * 2  # StopSignal: the second one ends a run without a checkpoint
    assert json.loads((tmp_path / OWNER).read_text()) == taken


def test_auto_takes_no_checkpoint_of_a_run_that_is_going_on(tmp_path, another):
    checkpoint = write(tmp_path / "first", 2)
    (tmp_path / "first" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(Config())))
    process = another(tmp_path / "first")
    said: list[str] = []
    assert find_checkpoint(Config(), tmp_path / "second", SAME, said.append) is None
    assert said == [f"{tmp_path / 'first'} is skipped: process {process.pid} on {socket.gethostname()} is running it"]
    process.kill()
    process.communicate(timeout=30)
    assert find_checkpoint(Config(), tmp_path / "second", SAME, said.append) == checkpoint


@pytest.mark.parametrize("sweep", [False, True])
def test_a_second_run_or_sweep_in_a_folder_is_refused_at_once(
    sweep, tiny_models, tmp_path, another, monkeypatch, capsys
):
    """Before anything in the folder changes: neither its configuration nor Hydra's record of the command."""
    monkeypatch.setattr(sys, "argv", ["train"])
    folder = tmp_path / "run"
    process = another(folder)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    arguments = ["profile=cpu", f"model.path={tiny_models['tied']}", "model.prompt_style=base", "data=toy"]
    arguments += ["verifier=toy", "rollout.max_prompt_tokens=60", "rollout.max_completion_tokens=48", "dry_run=true"]
    more = ["-m", "seed=0,1"] if sweep else []
    assert main([*more, *arguments, f"run_dir={folder}"]) == 2
    error, begin = capsys.readouterr().err, f"error: run_dir={folder} belongs to process {process.pid} on "
    assert error.startswith(begin) and error.count("\n") == 1
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_a_file_system_without_locks_has_owners_too(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(journal.fcntl, "flock", no_locks)
    with owned(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
