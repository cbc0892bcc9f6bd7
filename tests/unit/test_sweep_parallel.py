"""Parallel jobs: resources, bounds, stopping; processes with their share; jobs of a simulated Ray cluster."""

import json
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.resources import Resources
from expo_ray.preflight.plan import make_plan, write_plan
from expo_ray.sweep import ledger, side_by_side
from expo_ray.sweep.backends import NUMBER, SWEEP, Processes, RayJobs, last_error
from expo_ray.sweep.job import Job
from expo_ray.sweep.side_by_side import Exit, Limits, Room, SideBySide

QUICK = Limits(job_s=30.0, stop_s=5.0, poll_s=0.001)
MACHINE = Resources("a test", 1, 4, 64, 0, 0)


def plan(cores: float, memory: float | None = 1.0, gpus: int = 0):
    return SimpleNamespace(cores=cores, host_memory_gib=memory, gpus=gpus)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.floats(0.1, 4.0)), max_size=30), st.data())
def test_room_is_never_given_twice_and_comes_back_whole(wishes, data):
    room = Room(list(range(4)), [0, 1], 8.0, max_jobs=3)
    for cores, gpus, memory in wishes:
        room.take(plan(cores, memory, gpus))
        used_cores = [core for share in room.taken for core in share.cores]
        used_gpus = [card for share in room.taken for card in share.gpus]
        assert len(set(used_cores)) == len(used_cores) and len(set(used_gpus)) == len(used_gpus)
        assert sum(share.memory_gib for share in room.taken) <= 8.0 + 1e-9 and len(room.taken) <= 3
        if room.taken and data.draw(st.booleans()):
            room.give_back(data.draw(st.sampled_from(room.taken)))
    while room.taken:
        room.give_back(room.taken[0])
    assert (room.cores, room.gpus) == ([0, 1, 2, 3], [0, 1]) and room.memory_gib == pytest.approx(8.0)


def test_a_job_that_asks_for_more_than_there_is_runs_alone():
    room = Room([0, 1], [], 8.0)
    share = room.take(plan(16))
    assert share is not None and share.cores == (0, 1) and room.take(plan(0)) is not None
    alone = Room([0, 1], [], 8.0)
    assert alone.take(plan(1, None)) is not None and alone.take(plan(1)) is None


class Backend:
    """Simulates jobs that end after `polls` polls; `how` may make one fail, or never stop."""

    def __init__(self, polls=3, how=None):
        self.polls, self.how = polls, how or {}
        self.left: dict[int, int] = {}
        self.resumed: dict[int, str] = {}
        self.stops: list[tuple[int, bool]] = []
        self.most = 0

    def start(self, job, resume, share):
        self.left[job.number], self.resumed[job.number] = self.polls, resume
        self.most = max(self.most, len(self.left))

    def poll(self, job):
        self.left[job.number] -= 1
        how = self.how.get(job.number, "finished")
        if how == "deaf" or (self.left[job.number] > 0):
            return None
        del self.left[job.number]
        if how == "failed":
            return Exit(False, "ActorFailed: learner-0 died", job.folder / "logs" / "job.log")
        (job.folder / "summary.json").write_text(json.dumps({"finished": how == "finished"}))
        return Exit(how == "finished", None, None)

    def stop(self, job, at_once):
        self.stops.append((job.number, at_once))
        self.how[job.number] = self.how.get(job.number, "stopped")
        self.left[job.number] = 0 if self.how[job.number] != "deaf" else self.left[job.number]


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Five jobs of two cores each; their configurations are composed once."""
    lengths = ["rollout.max_prompt_tokens=32", "rollout.max_completion_tokens=48"]
    config = compose_config(["profile=cpu", "model=toy", "data=toy", "verifier=toy", *lengths])
    monkeypatch.setattr(Job, "config", lambda self: config)
    return [Job(number, (f"seed={number}",), tmp_path / str(number)) for number in range(5)]


def run(backend, jobs, tmp_path, limits=QUICK, cores=4):
    ledger.begin(tmp_path, "a test")
    return SideBySide(backend, Room(list(range(cores)), [], 64.0), MACHINE, limits, tmp_path).run(jobs)


def test_as_many_run_at_once_as_fit_and_a_failed_one_does_not_end_the_others(jobs, tmp_path):
    backend = Backend(how={1: "failed"})
    ends = run(backend, jobs, tmp_path)
    assert backend.most == 2  # two cores each, four there
    assert [end.ended for end in ends] == ["finished", "failed", "finished", "finished", "finished"]
    assert ends[1].error == "ActorFailed: learner-0 died"
    assert ends == ledger.ends(tmp_path)
    assert set(backend.resumed.values()) == {"never"}


def test_finished_jobs_start_nothing(jobs, tmp_path):
    write_plan(make_plan(jobs[0].config()), jobs[0].folder)
    (jobs[0].folder / "summary.json").write_text('{"finished": true}')
    backend = Backend()
    assert [end.ended for end in run(backend, jobs[:2], tmp_path)] == ["finished before", "finished"]
    assert set(backend.resumed) == {1}


def test_what_the_running_jobs_do_is_said_every_minute(jobs, tmp_path, monkeypatch, capsys):
    class Reporting(Backend):
        def start(self, job, resume, share):
            super().start(job, resume, share)
            if job.number == 1:
                (job.folder / "status.json").write_text(json.dumps({"step": 6, "phase": "update"}))

    run(Reporting(), jobs[:2], tmp_path)
    assert "running" not in capsys.readouterr().err
    monkeypatch.setattr(side_by_side, "SAY_EVERY_S", 0.0)
    run(Reporting(), jobs[:2], tmp_path)
    assert "sweep: running: job 0 (starting), job 1 (step 7, update)" in capsys.readouterr().err.splitlines()


def test_a_stop_reaches_running_jobs_and_no_other_starts(jobs, tmp_path):
    class Interrupted(Backend):
        asked = False

        def poll(self, job):
            if not self.asked:
                self.asked = True
                os.kill(os.getpid(), signal.SIGINT)
            return super().poll(job)

    backend = Interrupted(polls=1000)
    ends = run(backend, jobs, tmp_path)
    assert [end.ended for end in ends] == ["stopped", "stopped", "not started", "not started", "not started"]
    assert sorted(backend.stops) == [(0, False), (1, False)]


def test_a_job_over_its_time_is_stopped_then_ended_then_given_up(jobs, tmp_path):
    limits = Limits(job_s=0.02, stop_s=0.05, poll_s=0.001)
    backend = Backend(polls=10**9, how={0: "deaf"})
    began = time.monotonic()
    ends = run(backend, jobs[:2], tmp_path, limits, cores=2)
    assert time.monotonic() - began < 5
    assert [end.ended for end in ends] == ["failed", "failed"]
    assert all("hydra.launcher.job_s" in (end.error or "") for end in ends)
    assert (0, False) in backend.stops and (0, True) in backend.stops and (1, True) not in backend.stops


def test_a_second_stop_ends_everything_at_once(jobs, tmp_path):
    class Hurried(Backend):
        def poll(self, job):
            os.kill(os.getpid(), signal.SIGINT)

    backend = Hurried()
    with pytest.raises(KeyboardInterrupt):
        run(backend, jobs, tmp_path)
    assert {(0, True), (1, True)} <= set(backend.stops)


def script(monkeypatch, body: str):
    monkeypatch.setattr(Job, "command", lambda self, resume=None: [sys.executable, "-c", body])


def follow(processes, job):
    deadline = time.monotonic() + 60
    while (found := processes.poll(job)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_a_process_has_its_own_cores_and_cards(jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    script(
        monkeypatch,
        "import os,time; time.sleep(0.5); print(sorted(os.sched_getaffinity(0)), os.environ['CUDA_VISIBLE_DEVICES'])",
    )
    core = min(os.sched_getaffinity(0))
    processes = Processes()
    processes.start(jobs[0], "never", SimpleNamespace(cores=(core,), gpus=(0, 2)))
    found = follow(processes, jobs[0])
    assert found.ok and found.log.read_text() == f"[{core}] 4,6\n"


def test_a_process_that_fails_tells_its_last_error(jobs, monkeypatch):
    processes = Processes()
    share = SimpleNamespace(cores=(), gpus=())
    script(monkeypatch, "import sys; print('error: first'); print('x'); print('error: the GPU is gone'); sys.exit(1)")
    processes.start(jobs[0], "never", share)
    assert follow(processes, jobs[0]).error == "the GPU is gone"
    script(monkeypatch, "import sys; print('Killed'); sys.exit(9)")
    processes.start(jobs[0], "never", share)
    assert follow(processes, jobs[0]).error == "exit code 9: Killed"  # not the error of the call before
    assert last_error("", "it died") == "it died: no output"


def test_processes_are_asked_to_stop_or_ended(jobs, monkeypatch):
    processes = Processes()
    share = SimpleNamespace(cores=(), gpus=())
    handler = "import signal,sys,time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(130)); "
    wait = handler + "print(1, flush=True); time.sleep(60)"
    script(monkeypatch, wait)
    for job in jobs[:2]:
        processes.start(job, "never", share)
    deadline = time.monotonic() + 60
    while any("1" not in (job.folder / "logs/job.log").read_text() for job in jobs[:2]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes.stop(jobs[0], at_once=False)
    processes.stop(jobs[1], at_once=True)
    asked, ended = follow(processes, jobs[0]), follow(processes, jobs[1])
    assert (asked.ok, asked.error) == (False, None) and ended.error == "exit code -9: 1"


class Client:
    """Stands in for ray.job_submission.JobSubmissionClient."""

    def __init__(self, address=None):
        self.submitted: list[dict] = []
        self.status: dict[str, str] = {}
        self.deaf = threading.Event()
        self.stopped: list[str] = []

    def submit_job(self, **job):
        self.submitted.append(job)
        self.status[f"raysubmit_{len(self.submitted)}"] = "RUNNING"
        return f"raysubmit_{len(self.submitted)}"

    def get_job_info(self, name):
        if self.deaf.is_set():
            raise ConnectionError("refused")
        status = self.status[name]
        message = "failed with exit code 130" if status == "INTERRUPTED" else ""
        return SimpleNamespace(status=SimpleNamespace(value=status.replace("INTERRUPTED", "FAILED")), message=message)

    def get_job_logs(self, name):
        return "one\nerror: the disk is full\n"

    def stop_job(self, name):
        self.stopped.append(name)

    def list_jobs(self):
        def details(name, number, status, sweep="/shared/sweep"):
            metadata = {SWEEP: sweep, NUMBER: number}
            return SimpleNamespace(submission_id=name, metadata=metadata, status=SimpleNamespace(value=status))

        self.status["raysubmit_old"] = "RUNNING"
        return [
            details("raysubmit_old", "3", "RUNNING"),
            details("raysubmit_done", "2", "FAILED"),
            details("raysubmit_other", "1", "RUNNING", "/shared/another"),
        ]


@pytest.fixture
def cluster(monkeypatch):
    import ray.job_submission

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    backend = RayJobs(None, "/shared/sweep", "python", {"env_vars": {"A": "1"}}, request_s=5, lost_s=0.2)
    return backend, backend._client


def test_a_cluster_job_gets_the_jobs_own_command_and_no_token(cluster, jobs, monkeypatch):
    backend, client = cluster
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    backend.start(jobs[0], "never", None)
    (submitted,) = client.submitted
    assert submitted["entrypoint"].startswith("python -m expo_ray.train seed=0 ")
    assert submitted["metadata"] == {SWEEP: "/shared/sweep", NUMBER: "0"}
    assert "secret" not in json.dumps(submitted)


def test_cluster_jobs_are_followed_to_their_end(cluster, jobs):
    backend, client = cluster
    for job in jobs[:3]:
        backend.start(job, "never", None)
    assert backend.poll(jobs[0]) is None
    client.status |= {"raysubmit_1": "SUCCEEDED", "raysubmit_2": "FAILED", "raysubmit_3": "INTERRUPTED"}
    found = [backend.poll(job) for job in jobs[:3]]
    assert [(one.ok, one.error) for one in found] == [(True, None), (False, "the disk is full"), (False, None)]
    assert (jobs[1].folder / "logs/job.log").read_text().startswith("one\n")


def test_a_job_that_an_earlier_call_left_running_is_followed_and_not_submitted_again(cluster, jobs):
    backend, client = cluster
    for number in (1, 2, 3):
        backend.start(jobs[number], "auto", None)
    assert len(client.submitted) == 2
    backend.stop(jobs[3], at_once=False)
    assert client.stopped == ["raysubmit_old"]


def test_a_cluster_that_does_not_answer_is_given_up_in_the_end(cluster, jobs):
    backend, client = cluster
    backend.start(jobs[0], "never", None)
    client.deaf.set()
    assert backend.poll(jobs[0]) is None
    time.sleep(0.25)
    found = backend.poll(jobs[0])
    assert found is not None and not found.ok and "the dashboard has not answered for 0 s (refused)" in str(found.error)


def test_a_request_that_hangs_is_bounded(cluster, jobs, monkeypatch):
    backend, client = cluster
    backend.request_s = 0.05
    monkeypatch.setattr(client, "submit_job", lambda **_: time.sleep(3))
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"job 0 could not be submitted: no answer within 0 s"):
        backend.start(jobs[0], "never", None)
    assert time.monotonic() - began < 2


def test_no_dashboard_is_told_in_one_sentence(monkeypatch):
    import ray.job_submission

    def refuse(address):
        raise ConnectionError("Failed to connect to Ray at address: http://nowhere:1\nmore")

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", refuse)
    with pytest.raises(ConfigError) as caught:
        RayJobs("http://nowhere:1", "/s", "python", {}, 5, 5)
    assert "http://nowhere:1" in str(caught.value) and "\n" not in str(caught.value)


def test_a_job_of_a_cluster_has_time_for_its_checkpoint_when_it_is_stopped():
    from omegaconf import OmegaConf

    from hydra_plugins.expo_ray_launchers import RayJobsLauncher

    def environment(own):
        bounds = {"max_jobs": 0, "job_s": 9.0, "stop_s": 1800.0, "poll_s": 1.0}
        return RayJobsLauncher(None, "python", OmegaConf.create(own), 5.0, 5.0, **bounds).environment()

    wait = "RAY_JOB_STOP_WAIT_TIME_S"  # as ray.dashboard.modules.job.job_supervisor reads it
    assert environment({}) == {"env_vars": {wait: "1800"}}
    assert environment({"pip": ["a"], "env_vars": {"A": "1"}}) == {"pip": ["a"], "env_vars": {wait: "1800", "A": "1"}}
    assert environment({"env_vars": {wait: "7"}})["env_vars"][wait] == "7"
