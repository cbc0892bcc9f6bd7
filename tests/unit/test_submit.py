"""A submission without a cluster: what it asks for, what travels, how a job is followed, and what Ctrl-C does."""

import os
import pty
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from expo_ray import submit
from expo_ray.config.errors import ConfigError
from expo_ray.submission import dashboard, job
from expo_ray.submission.dashboard import NoAnswer
from expo_ray.submission.job import Follower, complete, entrypoint, runtime_env

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("REQUEST_S", 5), ("POLL_S", 0.02), ("LOST_S", 0.3)):
        monkeypatch.setattr(job, name, seconds)


def test_a_run_without_a_folder_gets_one_that_outlives_the_job():
    overrides = complete(["experiment=demo"], "/shared/my runs", False)
    assert overrides[1:] == [
        "run_dir='/shared/my runs/${run_name}/${now:%Y-%m-%d_%H-%M-%S}'",
        "cluster.address=auto",
    ]
    line = entrypoint("python", overrides, False)
    assert shlex.split(line) == ["exec", "python", "-m", "expo_ray.train", *overrides]
    own = complete(["run_dir='/shared/a b'", "cluster.address=h:1", "seed=0,1"], None, True)
    assert own == ["run_dir='/shared/a b'", "cluster.address=h:1", "seed=0,1"]
    assert shlex.split(entrypoint("python", own, True))[3:5] == ["expo_ray.train", "-m"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["experiment=demo"], "give run_dir=/SHARED/FOLDER or --runs"),
        (["experiment=demo", "run_dir=runs/mine"], "run_dir=runs/mine is not absolute"),
        (["algo.betta=1", "run_dir=/r"], "algo.betta"),
        (["seed=0,1", "run_dir=/r"], "add -m"),
        (["trainer.steps=-1", "run_dir=/r"], "trainer.steps=-1"),
    ],
)
def test_what_no_cluster_can_run_is_refused_here(overrides, said):
    with pytest.raises(ConfigError) as caught:
        complete(overrides, None, False)
    assert said in str(caught.value)


def test_what_only_the_nodes_know_is_left_to_them():
    complete(
        ["model.path=/nowhere", "data.path=/nowhere", "trainer.resume=/nowhere", "run_dir=/nowhere/r"], None, False
    )


def test_a_relative_file_of_data_must_travel(tmp_path, monkeypatch):
    """A node resolves it in its copy of the repository, which has no runs/ and nothing from elsewhere."""
    monkeypatch.setattr(job, "working_dir", lambda: tmp_path)
    for name in ("mine/a.jsonl", "runs/e/pass_rates.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    base = ["experiment=demo", "run_dir=/shared/r"]
    for travels in (
        "data.path=mine/a.jsonl",
        "data.path=mine/*.jsonl",
        "data.path=/elsewhere/a.jsonl",
        "data.path='~/a'",
    ):
        assert travels in complete([*base, "data=file", travels], None, False)
    for stays in (
        "data.path=b.jsonl",
        "data.pass_rates=runs/e/pass_rates.jsonl",
        "data.path=../a.jsonl",
        "data.sources=[{path: mine/a.jsonl}, {path: b.jsonl}]",
    ):
        with pytest.raises(ConfigError, match=r"does not travel with the job.*or give an absolute path"):
            complete([*base, "data=file", stays], None, False)


def test_what_travels(tmp_path):
    """Ray's own packaging of a repository: the code and the user's own files, no runs, packages or history."""
    from ray._private.runtime_env.packaging import _get_excludes

    environment = runtime_env()
    assert environment["working_dir"] == str(REPOSITORY)
    left_out = _get_excludes(tmp_path, environment["excludes"])
    for stays in (".git/HEAD", ".venv/bin/python", "runs/demo/a/metrics.jsonl", "tests/conftest.py", "docs/sync.md"):
        assert left_out(tmp_path / stays), stays
    for stays in ("expo_ray/__pycache__/a.pyc", ".mypy_cache/x", "expo_ray.egg-info/PKG-INFO", "a.log"):
        assert left_out(tmp_path / stays), stays
    for goes in ("expo_ray/train.py", "conf/train.yaml", "conf/algo/grpo.yaml", "hydra_plugins/expo_ray_launchers.py"):
        assert (REPOSITORY / goes).exists() and not left_out(tmp_path / goes), goes
    for goes in ("mine.py", "problems.jsonl", "expo_ray/world/base/config.json", "mine/runs/a.py"):
        assert not left_out(tmp_path / goes), goes
    assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 60


def test_no_secret_travels(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert "secret" not in str(runtime_env()) + entrypoint("python", ["a=b"], False)


class Job:
    """A job whose log grows by pieces, read over connections that may break."""

    def __init__(self, pieces, status="SUCCEEDED", code=0, breaks_after=()):
        self.pieces, self.status, self.code, self.breaks = pieces, status, code, list(breaks_after)
        self.ended = self.stopped = self.silent = False
        self.interrupts = 0

    def get_address(self):
        return "http://head:8265"

    def get_job_info(self, name):
        if self.silent:
            raise ConnectionError("refused")
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt  # as if Ctrl-C had come during the request
        status = ("STOPPED" if self.stopped else self.status) if self.ended or self.stopped else "RUNNING"
        return SimpleNamespace(status=SimpleNamespace(value=status), driver_exit_code=self.code, message=None)

    async def tail_job_logs(self, name):
        limit = self.breaks.pop(0) if self.breaks else None
        for count, piece in enumerate(self.pieces):
            if count == limit:
                raise RuntimeError("WebSocket closed")
            yield piece
        if limit is None:
            self.ended = True

    def get_job_logs(self, name):
        return "".join(self.pieces)

    def stop_job(self, name):
        self.stopped = True


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_the_exit_code_is_the_jobs(status, code, expected, capsys):
    a_job = Job(["one\n", "two\n"], status, code)
    assert Follower(a_job, "j", None).follow() == expected
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_broken_connection_repeats_and_loses_nothing(capsys):
    a_job = Job([f"line {n}\n" for n in range(9)], breaks_after=(2, 5, 0))
    assert Follower(a_job, "j", None).follow() == 0
    said = capsys.readouterr()
    assert said.out == "".join(a_job.pieces)
    assert said.err.count("the log of j does not come (WebSocket closed)") == 1


def test_a_log_that_cannot_be_followed_is_shown_at_the_end(capsys):
    a_job = Job(["one\n", "two\n"], "FAILED", 3, breaks_after=[1] * 1000)
    follower = Follower(a_job, "j", None)
    original, begun = a_job.get_job_info, time.monotonic()

    def ends_later(name):
        a_job.ended = time.monotonic() - begun > 0.3
        return original(name)

    a_job.get_job_info = ends_later
    assert follower.follow() == 3
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_dashboard_that_is_gone_is_given_up_in_the_end():
    a_job = Job(["one\n"], breaks_after=[1] * 1000)
    a_job.silent = True
    began = time.monotonic()
    with pytest.raises(NoAnswer, match=r"the dashboard has not answered for 0 s \(refused\)"):
        Follower(a_job, "j", None).follow()
    assert time.monotonic() - began < 30


@pytest.fixture
def at_once(monkeypatch):
    """Requests in the main thread, where Python raises an interrupt; `ask` makes them in another one."""
    monkeypatch.setattr(job, "ask", lambda call, seconds: call())


def interrupted(wish):
    a_job = Job(["one\n"], breaks_after=[1] * 1000)
    a_job.interrupts = 1
    asked = []

    def ask():
        asked.append(wish)
        return wish

    return a_job, asked, Follower(a_job, "j", ask)


def test_ctrl_c_asks_and_stops(at_once, capsys):
    a_job, asked, follower = interrupted("stop")
    assert follower.follow() == 130 and a_job.stopped and asked == ["stop"]
    assert "with a checkpoint" in capsys.readouterr().err


def test_ctrl_c_asks_and_leaves(at_once, capsys):
    a_job, asked, follower = interrupted("leave")
    assert follower.follow() == 130 and not a_job.stopped and asked == ["leave"]
    assert "ray job stop --address http://head:8265 j" in capsys.readouterr().err


def test_ctrl_c_asks_and_goes_on(at_once):
    a_job, asked, follower = interrupted("go on")
    a_job.breaks.clear()
    assert follower.follow() == 0 and not a_job.stopped and asked == ["go on"]


def test_ctrl_c_without_a_terminal_says_how_to_stop(at_once, capsys):
    a_job, _, follower = interrupted("stop")
    follower._ask_user = None
    assert follower.follow() == 130 and not a_job.stopped
    said = capsys.readouterr().err
    assert "j runs on" in said and "--follow j" in said and "ray job stop" in said


ASK = "from expo_ray.submit import _ask_user; print('wish', _ask_user())"


@pytest.mark.parametrize(("typed", "wish"), [("y\n", "stop"), ("N\n", "leave"), ("c\n", "go on"), ("\n", "leave")])
def test_the_question_in_a_terminal(typed, wish):
    above, below = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", ASK], stdin=below, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.write(above, typed.encode())
    out, err = child.communicate(timeout=120)
    os.close(above), os.close(below)
    assert out.decode().strip() == f"wish {wish}" and "Stop the job?" in err.decode()


class FreshHead:
    """Answers before it knows of an agent, `late` times."""

    def __init__(self, late: int, said: str = "Request failed with status code 500: No available agent to submit job."):
        self.late, self.said, self.taken = late, said, []

    def submit_job(self, **job):
        self.late -= 1
        if self.late >= 0:
            raise RuntimeError(self.said)
        self.taken.append(job)
        return "raysubmit_1"


def test_a_cluster_that_has_just_started_is_given_time(monkeypatch):
    monkeypatch.setattr(dashboard.time, "sleep", lambda _: None)
    head = FreshHead(late=3)
    assert dashboard.submit(head, 5.0, entrypoint="true") == "raysubmit_1"
    assert head.taken == [{"entrypoint": "true"}], "never twice"
    with pytest.raises(RuntimeError, match="wrong environment"):
        dashboard.submit(FreshHead(late=1, said="wrong environment"), 5.0, entrypoint="true")
    monkeypatch.setattr(dashboard, "AGENT_S", -1.0)
    with pytest.raises(NoAnswer, match="--dashboard-agent-listen-port"):
        dashboard.submit(FreshHead(late=1), 5.0, entrypoint="true")


def test_wrong_input_ends_with_2_before_any_cluster_is_asked(monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(submit, "_connect", lambda *_: pytest.fail("the cluster was asked"))
    assert submit.main(["experiment=demo", "trainer.stepps=1", "--runs", "/shared"]) == 2
    assert "trainer.stepps" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        submit.main(["--follow", "j", "seed=1"])
    assert caught.value.code == 2


def test_no_dashboard_is_told_in_one_sentence(monkeypatch, capsys):
    import ray.job_submission

    def refuse(address):
        raise ConnectionError("Failed to connect to Ray at address: http://nowhere:1\nmore")

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", refuse)
    assert submit.main(["experiment=demo", "--runs", "/shared", "--address", "http://nowhere:1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "http://nowhere:1" in said and "RAY_AUTH_TOKEN" in said
