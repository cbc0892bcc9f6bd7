"""A Ray that fails to start: it is retried, then one sentence quotes the raylet's log."""

import os
import tempfile
from pathlib import Path

import pytest
import ray

from expo_ray.runtime.ray_node import TRIES, start_ray
from expo_ray.runtime.waits import WaitExpired

AGENT_BOUND = "RAY_agent_register_timeout_ms"
TIMED_OUT = "The current node timed out during startup. This could happen because ..."


def failing(error, times, calls):
    def init(**options):
        calls.append(options)
        if len(calls) <= times:
            raise error

    return init


@pytest.fixture
def logs(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # short enough for the paths of Ray's sockets
        monkeypatch.setenv("RAY_TMPDIR", place)
        folder = Path(place, "ray", "session_latest", "logs")
        folder.mkdir(parents=True)
        yield folder


def test_a_start_that_timed_out_is_tried_again(monkeypatch):
    calls = []
    monkeypatch.setattr(ray, "init", failing(RuntimeError(TIMED_OUT), TRIES - 1, calls))
    start_ray(num_cpus=3)
    assert len(calls) == TRIES and all(options["num_cpus"] == 3 for options in calls)


def test_rays_agents_get_more_than_rays_own_time(monkeypatch):
    monkeypatch.delenv(AGENT_BOUND, raising=False)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    start_ray()
    assert int(os.environ[AGENT_BOUND]) > 15_000
    monkeypatch.setenv(AGENT_BOUND, "7")
    start_ray()
    assert os.environ[AGENT_BOUND] == "7", "the user has set it"


def test_the_last_failure_quotes_the_raylets_log(monkeypatch, logs):
    fatal = "dlmalloc.cc:161: create_buffer failed to open file /dev/shm/plasmaLpGP88, errorPermission denied"
    (logs / "raylet.err").write_text(f"[2026-11-22] {fatal}\n*** StackTrace Information ***\nraylet(+0xff)\n")
    calls = []
    monkeypatch.setattr(ray, "init", failing(RuntimeError(TIMED_OUT), TRIES, calls))
    with pytest.raises(WaitExpired, match="/dev/shm/plasmaLpGP88, errorPermission denied") as raised:
        start_ray()
    assert len(calls) == TRIES and str(logs) in str(raised.value) and "StackTrace" not in str(raised.value)


@pytest.mark.parametrize("content", [None, ""])
def test_an_absent_or_empty_raylet_log_is_reported(monkeypatch, logs, content):
    if content is not None:
        (logs / "raylet.err").write_text(content)
    monkeypatch.setattr(ray, "init", failing(RuntimeError(TIMED_OUT), TRIES, []))
    with pytest.raises(WaitExpired, match="cannot be read" if content is None else "reported no error"):
        start_ray()


def test_another_error_is_not_tried_again(monkeypatch):
    calls = []
    monkeypatch.setattr(ray, "init", failing(ValueError("num_cpus must not be negative"), 1, calls))
    with pytest.raises(ValueError, match="negative"):
        start_ray()
    assert len(calls) == 1
