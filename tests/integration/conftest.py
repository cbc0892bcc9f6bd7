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

from tests.integration.small_run import start


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """The folder of a small run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("small_run") / "run"
    assert start(folder).wait(timeout=600) == 0, folder.with_suffix(".stderr").read_text()[-3000:]
    return folder


@pytest.fixture(scope="module")
def token_cluster() -> Iterator[dict[str, str]]:
    """A Ray head on this machine that lets in only who has its token: the environment that reaches it."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        port, dashboard = first.getsockname()[1], second.getsockname()[1]
    there = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    command += ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=150000000", "--disable-usage-stats"]
    head = subprocess.Popen(
        command,
        env={**os.environ, **there},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(dashboard)
        yield there | {"ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail("Ray's dashboard did not start within 180 s")
