"""Where a command runs: each surrounding that once broke a run, and the line or the exit code that comes out of it."""

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest
import ray
from ray._private import ray_constants, services, utils
from simulated_ray import NEVER, Clock, Ref

from expo_ray.command import end_by_signal
from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config
from expo_ray.driver.trackers import PrometheusTracker
from expo_ray.runtime import dispatch, ray_node, waits
from expo_ray.runtime.waits import RayLost, Waiter, wait_any

BODY = """
import signal, sys, time
from expo_ray.command import end_by_signal
def body():
    {body}
    print("up", flush=True)
    time.sleep(60)
    return 0
sys.exit(end_by_signal(body))
"""
STOPPING = "from expo_ray.driver.stopping import StopSignal; StopSignal().__enter__()"


@pytest.fixture
def silent_port():
    """A port at which somebody listens who never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def config_for(address: str | None, start_s: float) -> Config:
    config = Config()
    config.cluster.address, config.trainer.start_s = address, start_s
    return config


@pytest.mark.parametrize("key", ["cluster.address", "RAY_ADDRESS"])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://127.0.0.1:10001", ["Ray Client", "expo_ray.submit"]),
        ("127.0.0.1:1", ["no Ray cluster"]),
        ("127.0.0.1:SILENT", ["no Ray cluster answers within trainer.start_s=3"]),
    ],
)
def test_an_address_that_leads_nowhere_is_one_sentence(monkeypatch, silent_port, key, address, words):
    address = address.replace("SILENT", str(silent_port))
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked, which hears no signal for minutes"))
    if key == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError) as raised:
        ray_node.join_or_start_ray(config_for(address if key == "cluster.address" else None, 3))
    sentence = str(raised.value)
    assert sentence.startswith(f"{key}={address}") and "\n" not in sentence
    assert all(word in sentence for word in [*words, "HOST:PORT"]), sentence


@pytest.mark.parametrize("run", ["demo/run", "demo/läufe-ж", "実験/1"])
def test_a_run_folder_of_any_letters_can_be_exported(run):
    """With Ray's own gauges, which encode what they get as ASCII."""
    tracker = PrometheusTracker(run)
    tracker.scalars(1, {"reward/mean": 0.5, "eval/prüfung/pass@1": 1.0})
    assert len(tracker._gauges) == 3 and tracker._run.isascii()
    assert run.encode() == tracker._run.encode().decode("unicode_escape").encode(), "two runs stay two"


def test_what_the_cluster_says_is_quoted_in_a_line(monkeypatch):
    said = "Traceback (most recent call last):\n  File\nValueError: odd\n"
    monkeypatch.setattr(ray_node.subprocess, "run", lambda *a, **o: subprocess.CompletedProcess(a, 1, "", said))
    with pytest.raises(ConfigError, match=r"cluster.address=h:1: .*\(ValueError: odd\)"):
        ray_node.join_or_start_ray(config_for("h:1", 3))

    def refuses(**_options):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.0")

    monkeypatch.setattr(ray_node.subprocess, "run", lambda *a, **o: subprocess.CompletedProcess(a, 0, "", ""))
    monkeypatch.setattr(ray, "init", refuses)
    with pytest.raises(ConfigError, match=r"cannot be joined \(Version mismatch: .* Ray: 2.0\)"):
        ray_node.join_or_start_ray(config_for("h:1", 3))


def test_ray_starts_in_groups_of_its_own_and_leaves_our_handlers_alone():
    before = (services.ConsolePopen, utils.set_sigterm_handler, ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER)
    mine = signal.getsignal(signal.SIGTERM)
    with ray_node._apart():
        utils.set_sigterm_handler(lambda *_: None)
        assert ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER
        child = services.ConsolePopen(["sleep", "60"])
    try:
        assert os.getpgid(child.pid) == child.pid != os.getpgrp()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        child.kill()
        child.wait()
    after = (services.ConsolePopen, utils.set_sigterm_handler, ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER)
    assert after == before, "only Ray's own start is changed"


@pytest.mark.parametrize(("letters", "moved"), [(41, False), (42, True), (300, True)])
def test_a_long_tmpdir_gives_rays_sockets_another_place(monkeypatch, capsys, letters, moved):
    """41 bytes: what Linux allows for a socket's path, without what Ray puts below its folder."""
    calls: list[dict] = []
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    folder = ("/tmp/" + "x" * 400)[: letters - len("/ray")]
    monkeypatch.setenv("RAY_TMPDIR", folder)
    ray_node.start_ray()
    said = capsys.readouterr().err
    if not moved:
        assert calls[0]["_temp_dir"] is None and said == ""
        return
    place = calls[0]["_temp_dir"]
    assert len(place) <= 41 and os.access(place, os.W_OK)
    assert said.count("\n") == 1 and said.startswith(f"Ray's files are in {place}: {folder}/ray is too long")


def test_without_a_short_place_the_sentence_names_the_variable(monkeypatch):
    monkeypatch.setattr(ray_node, "SHORT_PLACES", ("/proc/nowhere",))
    with pytest.raises(ConfigError, match="set RAY_TMPDIR to a short path"):
        ray_node._short_place("/" + "x" * 60)


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(waits, "ray", found)
    monkeypatch.setattr(waits, "time", found)
    monkeypatch.setattr(dispatch, "ray", found)
    return found


@pytest.fixture
def raylet(monkeypatch):
    """A process that stands for the raylet, a child as that of a node that we started."""
    child = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(waits, "ray_processes", {"raylet": psutil.Process(child.pid)})
    yield child
    child.kill()
    child.wait()


@pytest.mark.parametrize("reaped", [False, True])
def test_a_raylet_that_is_gone_ends_a_wait_at_once(clock, raylet, reaped):
    never = Ref(NEVER, None)
    assert wait_any([never], 5) == ([], [never]) and clock.now == 5, "a raylet that lives ends no wait"
    asked = clock.wait

    def dies_meanwhile(refs, num_returns=1, timeout=None):
        if clock.now >= 7:
            raylet.kill()
            os.waitid(os.P_PID, raylet.pid, os.WEXITED | os.WNOWAIT)
            if reaped:
                raylet.wait()
        return asked(refs, num_returns, timeout)

    clock.wait = dies_meanwhile
    with pytest.raises(RayLost, match=rf"Ray's raylet .*process {raylet.pid}\) has ended.* resumes"):
        Waiter().gather({"learner-0": Ref(NEVER, None)}, "the update of step 3", 600)
    assert clock.now <= 7 + 2 * waits.LOOK_S


def test_a_step_of_the_clock_is_no_lost_raylet(monkeypatch, raylet):
    """/proc/stat's btime follows the wall clock, and psutil's times of start with it."""
    waits.check_ray()
    booted = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: booted + 10)
    waits.check_ray()


def test_a_lost_node_is_cleared_before_ray_is_asked_to_stop(monkeypatch, raylet):
    """Ray's shutdown waits for the lost parts otherwise."""
    order: list[str] = []
    monkeypatch.setattr(ray_node, "ray_processes", waits.ray_processes)
    monkeypatch.setattr(ray_node, "_end_processes", lambda: order.append("end"))
    monkeypatch.setattr(ray, "shutdown", lambda: order.append("shutdown"))
    raylet.kill()
    raylet.wait()
    ray_node.stop_ray()
    assert order == ["end", "shutdown"] and waits.ray_processes == {}
    ray_node.stop_ray()
    assert order == ["end", "shutdown", "shutdown"]


@pytest.mark.parametrize(
    ("body", "sent", "code", "lines"),
    [
        ("pass", [signal.SIGINT], 130, ["SIGINT: stopped at once, without a checkpoint"]),
        ("pass", [signal.SIGTERM], 143, ["SIGTERM: stopped at once, without a checkpoint"]),
        (
            STOPPING,
            [signal.SIGINT, signal.SIGINT],
            130,
            ["SIGINT: stopping after this step", "SIGINT: stopped at once, without a checkpoint"],
        ),
        (
            STOPPING,
            [signal.SIGTERM, signal.SIGTERM, signal.SIGINT],
            130,
            ["SIGTERM: stopping after this step", "SIGINT: stopped at once, without a checkpoint"],
        ),
    ],
)
def test_a_signal_is_one_line_and_its_exit_code(body, sent, code, lines):
    process = subprocess.Popen(
        [sys.executable, "-c", BODY.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n", process.stderr.read()
    said = []
    for number in sent:
        process.send_signal(number)
        if said or len(sent) == 1:
            continue
        said.append(process.stderr.readline())  # it has been handled: two of one kind at once are one
    said += process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == code
    assert [line.split(",")[0].strip() for line in said] == [line.split(",")[0] for line in lines], said


def test_a_second_sigterm_leaves_the_cleaning_up_alone(capsys):
    cleaned = []

    def body():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append("actors")

    assert end_by_signal(body) == 143 and cleaned == ["actors"]
    assert capsys.readouterr().err == "SIGTERM: stopped at once, without a checkpoint\n"
