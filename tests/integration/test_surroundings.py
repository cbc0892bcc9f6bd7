"""Surroundings that need a real Ray: signals to the whole process group, a lost raylet, a killed command, a token file.

Four starts of Ray without an engine, one small run, and the cluster that the tests of jobs share.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from expo_ray.checkpoint.manifest import damage
from tests.integration.small_run import REPOSITORY, SMALL, events, status, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ALONE = """
import logging, os, sys, time
from expo_ray.command import end_in_a_sentence
from expo_ray.config.schema import Config
def body():
    import ray
    from expo_ray.runtime.ray_node import join_or_start_ray, stop_ray
    from expo_ray.runtime.waits import Waiter
    config = Config()
    config.cluster.address, config.trainer.start_s = sys.argv[1] or None, 100
    started = join_or_start_ray(config)
    class Sleeper:
        def sleep(self, seconds): time.sleep(seconds)
    actor = ray.remote(Sleeper).options(num_cpus=0).remote()
    Waiter().gather({"rollout-0": actor.sleep.remote(0)}, "waking up", 300)
    print("up", flush=True)
    if started:
        try:
            Waiter().gather({"rollout-0": actor.sleep.remote(600)}, "sleeping", 600)
        finally:
            stop_ray()
    return 0
sys.exit(end_in_a_sentence(body))
"""


def alone(address: str = "", **environment: str) -> subprocess.Popen[str]:
    """A process that does what a command does with Ray, in a group of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return subprocess.Popen(
        [sys.executable, "-c", ALONE, address],
        cwd=REPOSITORY,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def nothing_left(family: list[psutil.Process]) -> bool:
    """Whether all these end within a while; those that do not are killed."""
    _, left = psutil.wait_procs(family, timeout=90)
    for process in left:
        process.kill()
    return left == []


@pytest.fixture(scope="module")
def ended() -> Iterator[list[psutil.Process]]:
    """What must be gone when the module's tests are done: Ray's agents try for a minute to reach what was killed."""
    found: list[psutil.Process] = []
    yield found
    assert nothing_left(found)


@pytest.mark.parametrize(
    ("hit", "code", "said"),
    [
        ("raylet", 1, "error: RayLost: Ray's raylet on this machine"),
        ("gcs_server", 1, "error: RayLost: Ray's gcs_server on this machine"),
        ("group", 143, "SIGTERM: stopped at once, without a checkpoint"),
        ("command", -signal.SIGKILL, ""),
    ],
)
def test_what_ends_a_command_ends_its_ray_and_is_one_line(hit, code, said, ended):
    process = alone()
    assert process.stdout.readline() == "up\n", process.communicate(timeout=60)[1][-3000:]
    family = psutil.Process(process.pid).children(recursive=True)
    assert {"raylet", "gcs_server"} <= {child.name() for child in family}
    assert not [word for child in family for word in child.cmdline() if "monitor.py" in word], "they are of no use here"
    if hit == "group":
        os.killpg(process.pid, signal.SIGTERM)
    elif hit == "command":
        process.kill()
    else:
        [child.kill() for child in family if child.name() == hit]
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err[-3000:]
    own = [line for line in err.splitlines() if "raylet)" not in line and not line.startswith("    ")]  # not Ray's
    assert sum(line.startswith(said) for line in own) == 1 or not said, err[-3000:]
    assert not any("Traceback" in line or "***" in line for line in own), err[-3000:]
    ended += family


def test_a_cluster_is_joined_with_the_token_that_the_user_has(token_cluster, tmp_path):
    """Ray itself sends no token to an address that is given."""
    folder = tmp_path / ".ray"
    folder.mkdir()
    (folder / "auth_token").write_text(token_cluster["RAY_AUTH_TOKEN"])
    process = alone(token_cluster["GCS"], HOME=str(tmp_path))
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, "up\n"), err[-3000:]
    (folder / "auth_token").write_text("0" * 64)
    process = alone(token_cluster["GCS"], HOME=str(tmp_path))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith(f"error: cluster.address={token_cluster['GCS']}: no Ray cluster"), err


def test_a_sigterm_to_the_whole_group_leaves_a_checkpoint_and_no_process(tmp_path):
    """In a folder outside ASCII, with a TMPDIR that is too long for Ray's sockets. One small run."""
    scratch, folder = tmp_path / ("scratch" * 12), tmp_path / "läufe-ж" / "run"
    scratch.mkdir()
    folder.parent.mkdir()
    log = tmp_path / "stderr"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "expo_ray.train", *SMALL, f"run_dir='{folder}'"],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )
    until(lambda: status(folder)["step"] >= 1 and status(folder)["phase"] == "generate", process, idle=0.001)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=400) == 130, log.read_text()[-3000:]
    said = log.read_text()
    done = events(folder, "checkpoint")[-1]["steps_done"]
    assert done >= 2 and damage(folder / "checkpoints" / f"step_{done:06d}") is None
    assert said.count("SIGTERM: stopping after this step") == 1 and "Ray's files are in" in said
    assert events(folder, "lost") == [] and not Path(folder, "owner.json").exists()
    assert nothing_left(family)
