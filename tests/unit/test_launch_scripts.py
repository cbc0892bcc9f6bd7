"""The scripts of launch/ with stand-ins for ray, ssh, Slurm and the trainer: what they start, pass on and hide."""

import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "5ec2e7" * 8

RAY = f"""#!/usr/bin/env bash
echo "$RAY_AUTH_MODE ray $*" >>"$HOME/calls"
case "$1 $2" in
    "get-auth-token --generate") mkdir -p ~/.ray && printf %s {TOKEN} >~/.ray/auth_token ;;
    "start --block")
        if [[ " $* " == *" --refuse "* ]]; then echo "no"; exit 1; fi
        trap 'echo ended >>"$HOME/calls"; exit 0' TERM
        echo up >>"$HOME/calls"
        printf '%s\\n' "Local node IP: 10.1.2.3" "Ray runtime started."
        while :; do sleep 0.1; done ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
echo "$RAY_AUTH_MODE python $*" >>"$HOME/calls"
case "$*" in
    -c*) echo 5ec2e75ec2e7 ;;
    *wait_for_nodes*)
        until (($(grep -cx up "$HOME/calls") >= ${STEPS:-0})); do sleep 0.05; done
        exit "${NODES_CODE:-0}" ;;
    *expo_ray.train*trainer.steps=0*) exit 7 ;;
    *expo_ray.train*)
        trap 'echo checkpoint >>"$HOME/calls"; exit 130' TERM
        echo training >>"$HOME/calls"
        while :; do sleep 0.1; done ;;
esac
"""
SSH = """#!/usr/bin/env bash
host=$1; shift
echo "$host: $*" >>"$MACHINES/ssh"
if [[ $host == gone ]]; then exit 255; fi
export HOME=$MACHINES/$host TMPDIR=$MACHINES/$host
mkdir -p "$HOME"
exec bash -c "$*"
"""
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$HOME/calls"
while [[ $1 != ray ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$HOME/calls"
if [[ $1 == show ]]; then printf '%s\\n' one two three; fi
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def world(tmp_path):
    """A repository with the scripts and stand-ins, and the environment to run them in."""
    repository = tmp_path / "a repository"
    shutil.copytree(REPOSITORY / "launch", repository / "launch")
    program(repository / ".venv/bin/ray", RAY)
    program(repository / ".venv/bin/python", PYTHON)
    for name, text in (
        ("ssh", SSH),
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("hostname", "#!/bin/sh\necho 10.9.8.7 x\n"),
    ):
        program(tmp_path / "bin" / name, text)
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(tmp_path), "STOP_S": "60"}
    return repository, home, environment | {"MACHINES": str(tmp_path / "machines")}


def run(world, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    repository, _, environment = world
    return subprocess.run(
        [str(repository / command[0]), *command[1:]],
        env=environment | more,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def until(holds, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "the wait was too long"
        time.sleep(0.05)


def test_a_local_head_starts_once_with_a_token_and_ends(world):
    home = world[1]
    begun = run(world, "launch/local.sh", "start")
    assert begun.returncode == 0, begun.stderr
    assert "make submit ADDRESS=http://127.0.0.1:8265" in begun.stdout and TOKEN not in begun.stdout + begun.stderr
    assert (home / ".ray/auth_token").read_text() == TOKEN and mode(home / ".ray/auth_token") == 0o600
    (started,) = [line for line in lines(home / "calls") if "start --block" in line]
    assert started.startswith("token ray ")
    for part in ("--head", "--port=6379", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"):
        assert part in started
    assert run(world, "launch/local.sh", "status").returncode == 0
    again = run(world, "launch/local.sh", "start")
    assert again.returncode == 1 and "runs already" in again.stderr
    assert run(world, "launch/local.sh", "stop").returncode == 0
    assert lines(home / "calls")[-1] == "ended"
    assert run(world, "launch/local.sh", "status").returncode == 1


def test_a_node_that_does_not_start_says_why_and_a_worker_needs_a_token(world):
    refused = run(world, "launch/node.sh", "head", RAY_ARGS="--refuse --num-cpus=1")
    assert refused.returncode == 1 and "Ray did not start: no" in refused.stderr
    (world[1] / ".ray/auth_token").unlink()
    worker = run(world, "launch/node.sh", "worker", "10.0.0.1:6379")
    assert worker.returncode == 1 and "no token" in worker.stderr
    assert not [line for line in lines(world[1] / "calls") if "--address" in line]


def test_a_stranger_with_the_number_of_an_old_node_is_left_alone(world):
    state = Path(world[2]["TMPDIR"]) / f"expo_ray_node_{os.getuid()}"
    state.mkdir()
    stranger = subprocess.Popen(["sleep", "300"])
    try:
        (state / "pid").write_text(f"{stranger.pid}\n")
        assert run(world, "launch/node.sh", "stop").returncode == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def hosts(tmp_path: Path, *names: str) -> str:
    file = tmp_path / "hosts"
    file.write_text("# the head first\n" + "\n\n".join(names))
    return str(file)


def test_a_cluster_by_ssh(world, tmp_path):
    machines = tmp_path / "machines"
    machines.mkdir()
    file = hosts(tmp_path, "head", "w1 10.0.0.7  # its other card", "w2")
    up = run(world, "launch/ssh.sh", "up", file, SSH="ssh", DASHBOARD_PORT="9999")
    assert up.returncode == 0, up.stderr
    assert "3 nodes at 10.1.2.3:6379" in up.stderr and "ssh -N -L 9999:127.0.0.1:9999 head" in up.stdout
    for name in ("head", "w1", "w2"):
        token = machines / name / ".ray/auth_token"
        assert token.read_text() == TOKEN and mode(token) == 0o600
    started = {
        name: next(line for line in lines(machines / name / "calls") if "start" in line)
        for name in ("head", "w1", "w2")
    }
    assert "--head" in started["head"] and "--dashboard-port=9999" in started["head"]
    assert "--address=10.1.2.3:6379" in started["w1"] and "--node-ip-address=10.0.0.7" in started["w1"]
    assert "--address=10.1.2.3:6379" in started["w2"] and "--node-ip-address" not in started["w2"]
    assert any("wait_for_nodes.py 10.1.2.3:6379 3 " in line for line in lines(machines / "head/calls"))
    assert TOKEN not in (machines / "ssh").read_text() + up.stdout + up.stderr
    status = run(world, "launch/ssh.sh", "status", file, SSH="ssh")
    assert status.returncode == 0 and status.stdout.count("runs as process") == 3
    assert run(world, "launch/ssh.sh", "down", file, SSH="ssh").returncode == 0
    assert [lines(machines / name / "calls")[-1] for name in ("head", "w1", "w2")] == ["ended"] * 3


def test_a_machine_that_is_gone_or_holds_another_token_is_named_before_anything_starts(world, tmp_path):
    machines = tmp_path / "machines"
    (machines / "w1/.ray").mkdir(parents=True)
    (machines / "w1/.ray/auth_token").write_text("another")
    up = run(world, "launch/ssh.sh", "up", hosts(tmp_path, "head", "gone", "w1"), SSH="ssh")
    assert up.returncode == 1
    assert "gone: cannot be reached" in up.stderr and "holds another token" in up.stderr
    assert "prepare failed on: gone w1" in up.stderr
    assert (machines / "w1/.ray/auth_token").read_text() == "another"
    assert not (machines / "head/calls").exists()
    assert "names no machine" in run(world, "launch/ssh.sh", "up", hosts(tmp_path)).stderr
    assert "usage" in run(world, "launch/ssh.sh", "up", str(tmp_path / "none")).stderr


# STEPS: of Ray, for which the stand-in of wait_for_nodes.py waits.
SLURM = {"STEPS": "2", "SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_ON_NODE": "64"}


def slurm(world, *overrides: str, **more: str) -> subprocess.Popen[str]:
    repository, _, environment = world
    return subprocess.Popen(
        ["bash", str(repository / "launch/slurm.sbatch"), *overrides],
        env=environment | SLURM | {"SLURM_SUBMIT_DIR": str(repository)} | more,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_slurm_job_starts_its_nodes_and_passes_the_exit_code_on(world):
    repository, home, _ = world
    job = slurm(world, "experiment=demo", "trainer.steps=0")
    said = job.communicate(timeout=300)[0]
    assert job.returncode == 7, said
    calls = lines(home / "calls")
    # Both run in the background, so either may write its line first.
    head, workers = sorted((line for line in calls if line.startswith("srun ")), key=lambda line: "--head" not in line)
    assert "--nodelist=one " in head and "--head --node-ip-address=10.9.8.7 --port=23456" in head
    assert "--nodelist=two,three " in workers and "--ntasks=2" in workers and "--address=10.9.8.7:23456" in workers
    assert any("wait_for_nodes.py 10.9.8.7:23456 3 " in line for line in calls)
    (train,) = [line for line in calls if "expo_ray.train" in line]
    assert train.startswith(
        "token python -m expo_ray.train experiment=demo trainer.steps=0 cluster.address=10.9.8.7:23456 "
    )
    assert train.endswith(f"run_dir={repository}/runs/slurm_123456")
    until(lambda: lines(home / "calls").count("ended") == 2)
    assert not [line for line in calls if "5ec2e7" in line or "requeue" in line]


@pytest.mark.parametrize("restarts", ["0", "20"])
def test_the_time_limit_of_slurm_makes_a_checkpoint_and_queues_the_job_again(world, restarts):
    home = world[1]
    job = slurm(world, "run_dir=/shared/mine", SLURM_RESTART_COUNT=restarts)
    until(lambda: "training" in lines(home / "calls"))
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=300)[0]
    assert job.returncode == 130, said
    calls = lines(home / "calls")
    assert "checkpoint" in calls and ("scontrol requeue 123456" in calls) == (restarts == "0")
    assert not [line for line in calls if "runs/slurm" in line]


def test_a_slurm_job_without_all_its_nodes_ends(world):
    job = slurm(world, NODES_CODE="1")
    assert job.communicate(timeout=300) and job.returncode == 1
    assert not [line for line in lines(world[1] / "calls") if "expo_ray.train" in line]
