"""Starting Ray and joining a cluster, with Ray's own calls replaced."""

import os
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from expo_ray.runtime import ray_node
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


@pytest.mark.parametrize(("cluster_has_token", "mode"), [(False, "disabled"), (True, "token")])
def test_a_token_is_sent_only_to_a_cluster_that_asks_for_one(cluster_has_token, mode, monkeypatch):
    """A driver in token mode refuses the calls of a cluster without tokens: its actors die before they start."""
    joined, asked = [], []

    def probe(command, env, **options):
        asked.append(env["RAY_AUTH_MODE"])
        refused = cluster_has_token and env["RAY_AUTH_MODE"] == "disabled"
        return subprocess.CompletedProcess(command, int(refused), "", "AuthenticationError: no" if refused else "")

    def enable(**options):
        os.environ["RAY_AUTH_MODE"] = "token"
        return True

    monkeypatch.setenv("RAY_AUTH_MODE", "to be restored")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setattr(ray_node.subprocess, "run", probe)
    monkeypatch.setattr(ray_node, "maybe_enable_token_auth_if_token_available", enable)
    monkeypatch.setattr(ray, "init", lambda **options: joined.append(os.environ.get("RAY_AUTH_MODE")))
    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(raylet_socket_name="/tmp/s/raylet"))
    ray_node._join("cluster.address", "host:1", 5)
    assert joined == [mode] and asked == ["disabled", "token"][: 1 + cluster_has_token]


def test_only_this_nodes_raylet_is_watched():
    """Two nodes on one machine have sockets named raylet and raylet.1."""
    own, other = (
        SimpleNamespace(cmdline=lambda name=name: ["raylet", f"--raylet_socket_name=/tmp/s/sockets/{name}"])
        for name in ("raylet", "raylet.1")
    )
    assert ray_node._has_argument(own, "/tmp/s/sockets/raylet")
    assert not ray_node._has_argument(other, "/tmp/s/sockets/raylet")
