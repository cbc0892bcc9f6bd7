"""`make submit` to a real Ray head that asks for a token: a whole small training run, and jobs that end otherwise."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SUBMIT = [sys.executable, "-m", "expo_ray.submit", "--python", sys.executable]
SMALL = ["experiment=demo", "profile=cpu", "trainer.prompts_per_step=4", "trainer.start_s=900", "eval.before=false"]
SMALL += ["eval.max_problems=1", "logging.trackers=[]"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture
def here(token_cluster, monkeypatch):
    """The address of the head; its token is in the environment, as a user has it."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, token_cluster[name])
    return token_cluster["ADDRESS"]


def start(address: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SUBMIT, "--address", address, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell would have it ignored
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=1500)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_a_submitted_run_finishes_and_its_log_is_followed(here, tmp_path):
    done = finish(start(here, *SMALL, "trainer.steps=1", "--runs", str(tmp_path)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    (folder,) = (tmp_path / "demo").iterdir()
    assert done.stdout.splitlines()[-1] == str(folder)
    assert json.loads((folder / "summary.json").read_text())["finished"]
    assert (folder / "checkpoints/step_000001/policy/config.json").exists()
    # The code that ran is the one that travelled, not the one that is installed.
    assert "working_dir_files" in (folder / "config.yaml").read_text()
    assert os.environ["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


def test_the_exit_code_of_a_job_that_fails_is_passed_on(here, tmp_path):
    wrong = finish(start(here, *SMALL, "data.path=/nowhere/at/all.jsonl", f"run_dir={tmp_path}/wrong"))
    assert wrong.returncode == 2, wrong.stderr
    assert "error: " in wrong.stdout and "/nowhere/at/all.jsonl" in wrong.stdout


def test_what_is_wrong_here_is_never_submitted(here, tmp_path):
    unknown = finish(start(here, "experiment=demo", "trainer.stepps=1", f"run_dir={tmp_path}/r"))
    assert unknown.returncode == 2 and unknown.stderr.startswith("error: ") and "trainer.stepps" in unknown.stderr
    stranger = finish(start(here, *SMALL, f"run_dir={tmp_path}/r", RAY_AUTH_TOKEN="0" * 64))
    assert stranger.returncode == 2 and "token" in stranger.stderr and "0" * 64 not in stranger.stderr
    assert not (tmp_path / "r").exists()


def test_ctrl_c_without_a_terminal_leaves_the_job_which_can_be_followed_and_stopped(here, tmp_path):
    first = start(here, *SMALL, "trainer.steps=1000", f"run_dir={tmp_path}/long")
    assert first.stdout is not None and first.stderr is not None
    told = next(line for line in first.stderr if line.startswith("submit: "))  # Ray's client says something before
    name = told.split()[1].rstrip(":")
    first.stdout.readline()
    first.send_signal(signal.SIGINT)
    left = finish(first)
    assert left.returncode == 130 and f"{name} runs on" in left.stderr, left.stderr
    again = start(here, "--follow", name)
    ray = str(Path(sys.executable).with_name("ray"))
    subprocess.run([ray, "job", "stop", "--no-wait", "--address", here, name], check=True, timeout=300)
    assert finish(again).returncode == 130
