"""What integration tests share."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.integration.small_run import start


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, worker_id) -> Path:
    """The folder of a small run that nothing disturbed; pytest's workers (xdist) share one."""
    place = tmp_path_factory.getbasetemp()
    place = place if worker_id == "master" else place.parent
    folder = place / "small_run" / "run"
    with FileLock(place / "small_run.lock"):
        if not folder.parent.exists():
            folder.parent.mkdir()
            assert start(folder).wait(timeout=600) == 0, folder.with_suffix(".stderr").read_text()[-3000:]
    return folder


@pytest.fixture(scope="session")
def token_cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A Ray head on this machine that lets in only who has its token: the environment that reaches it."""
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        for probe in (first, second, third):
            probe.bind(("127.0.0.1", 0))
        port, dashboard, agent = (probe.getsockname()[1] for probe in (first, second, third))
    there = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    there["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = "300"  # Ray's own 60 are too few where other jobs keep the cores busy
    head = _start_head(port, dashboard, agent, there, tmp_path_factory.mktemp("head") / "ray.log")
    try:
        yield there | {"ADDRESS": f"http://127.0.0.1:{dashboard}", "GCS": f"127.0.0.1:{port}"}
    finally:
        _end(head)


def _start_head(
    port: int, dashboard: int, agent: int, environment: dict[str, str], log: Path, tries: int = 3
) -> subprocess.Popen:
    """Waits for the dashboard. Ray gives its own node 30 s to come up, which a busy machine can miss.

    With its agent's usual port taken by another Ray on the machine, a head takes no jobs.
    """
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    command += [f"--dashboard-agent-listen-port={agent}"]
    command += ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=150000000", "--disable-usage-stats"]
    with log.open("ab") as file:
        head = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=file, stderr=file, start_new_session=True
        )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", dashboard)) == 0:
                return head
        time.sleep(0.5)
    late = head.poll() is None
    _end(head)
    if late or tries == 1:
        pytest.fail(f"Ray's dashboard did not start: {log.read_text()[-2000:]}")
    return _start_head(port, dashboard, agent, environment, log, tries - 1)


def _end(head: subprocess.Popen) -> None:
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
