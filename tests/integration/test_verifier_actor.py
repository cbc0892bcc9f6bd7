"""The verifier as Ray actors: a killed actor's items are judged by its replacement, each once."""

import os
import signal
import threading
import time

import pytest

from expo_ray.config.schema import VerifierConfig
from expo_ray.verifier.actor import VerifierActor
from expo_ray.verifier.client import judge_all

ray = pytest.importorskip("ray")


def spawn(_index: int = 0):
    config = VerifierConfig(name="toy", processes=1)
    return ray.remote(VerifierActor).options(num_cpus=0.5).remote(config)


def items(count: int):
    return [(f"a{index};A:{index}.", (str(index - index % 3),), {}) for index in range(count)]


def expected(count: int) -> list[str]:
    return ["correct" if index % 3 == 0 else "wrong" for index in range(count)]


def test_several_actors_keep_the_order(local_ray) -> None:
    handles = [spawn(), spawn()]
    verdicts = judge_all(handles, items(500), spawn, wait_s=120)
    assert [verdict.outcome for verdict in verdicts] == expected(500)
    assert [verdict.extracted for verdict in verdicts] == [str(index) for index in range(500)]
    assert judge_all(handles, [], spawn, wait_s=120) == []
    for handle in handles:
        ray.kill(handle)


def test_killing_an_actor_in_mid_batch_loses_nothing(local_ray) -> None:
    handles = [spawn(), spawn()]
    ray.get([handle.ping.remote() for handle in handles], timeout=120)
    first = list(handles)
    respawned: list[int] = []

    def respawn(index: int):
        respawned.append(index)
        return spawn()

    # The actor's process stops, so that its block is surely in flight when it is killed.
    pids = ray.get([_pid_of(handle) for handle in handles], timeout=60)
    os.kill(pids[0], signal.SIGSTOP)
    killer = threading.Timer(1.0, lambda: os.kill(pids[0], signal.SIGKILL))
    killer.start()
    verdicts = judge_all(handles, items(3000), respawn, wait_s=120)
    killer.join()
    assert [verdict.outcome for verdict in verdicts] == expected(3000)
    assert respawned == [0]
    assert handles[0] is not first[0]
    assert handles[1] is first[1]
    for handle in handles:
        ray.kill(handle)


def _pid_of(handle):
    return handle.__ray_call__.remote(lambda _self: os.getpid())


def test_a_silent_actor_is_a_bounded_wait(local_ray) -> None:
    handle = spawn()
    ray.get(handle.ping.remote(), timeout=120)
    pid = ray.get(_pid_of(handle), timeout=60)
    os.kill(pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"actors \[0\] finished nothing within 2 s"):
            judge_all([handle], items(10), spawn, wait_s=2.0)
        assert time.monotonic() - start < 10
    finally:
        os.kill(pid, signal.SIGKILL)
