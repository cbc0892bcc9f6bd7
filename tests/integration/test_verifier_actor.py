"""The verifier as Ray actors: a killed actor's items are judged by its replacement, each once."""

import os
import signal
import threading
import time

import pytest

from expo_ray.config.schema import VerifierConfig
from expo_ray.runtime.waits import ActorFailed, Waiter
from expo_ray.verifier.actor import VerifierActor, VerifierFleet

ray = pytest.importorskip("ray")


def spawn(_index: int = 0):
    config = VerifierConfig(name="toy", processes=1)
    return ray.remote(VerifierActor).options(num_cpus=0.5).remote(config)


def items(count: int):
    return [(f"a{index};A:{index}.", (str(index - index % 3),), {}) for index in range(count)]


def expected(count: int) -> list[str]:
    return ["correct" if index % 3 == 0 else "wrong" for index in range(count)]


def fleet(handles, replace, wait_s=120.0, log_folder="/nowhere"):
    return VerifierFleet(handles, replace, Waiter(str(log_folder)), wait_s, start_s=120.0)


def never(name: str, reason: str):
    pytest.fail(f"{name} was replaced: {reason}")


@pytest.fixture
def two(local_ray):
    handles = {"verifier-0": spawn(), "verifier-1": spawn()}
    ray.get([handle.ping.remote() for handle in handles.values()], timeout=120)
    yield handles
    for handle in handles.values():
        ray.kill(handle)


def test_several_actors_keep_the_order(two) -> None:
    mine = fleet(two, never)
    verdicts = mine.verdicts(items(500))
    assert [verdict.outcome for verdict in verdicts] == expected(500)
    assert [verdict.extracted for verdict in verdicts] == [str(index) for index in range(500)]
    assert mine.verdicts([]) == []


def test_killing_an_actor_in_mid_batch_loses_nothing(two) -> None:
    replaced: list[str] = []

    def replace(name: str, reason: str):
        replaced.append(name)
        assert "died" in reason
        return spawn()

    # The actor's process stops, so that its block is surely in flight when it is killed.
    pid = ray.get(_pid_of(two["verifier-0"]), timeout=60)
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(1.0, lambda: os.kill(pid, signal.SIGKILL))
    killer.start()
    mine = fleet(two, replace)
    verdicts = mine.verdicts(items(3000))
    killer.join()
    assert [verdict.outcome for verdict in verdicts] == expected(3000)
    assert replaced == ["verifier-0"]
    deadline = time.monotonic() + 60
    while len(members := mine.members()) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert members["verifier-0"] is not two["verifier-0"]
    assert members["verifier-1"] is two["verifier-1"]


def test_a_silent_actor_is_a_bounded_wait_and_is_replaced(two, tmp_path) -> None:
    (tmp_path / "verifier-1.log").write_text("the last words\n")
    pid = ray.get(_pid_of(two["verifier-1"]), timeout=60)
    os.kill(pid, signal.SIGSTOP)
    reasons: list[str] = []

    def replace(name: str, reason: str):
        reasons.append(reason)
        os.kill(pid, signal.SIGKILL)
        return spawn()

    verdicts = fleet(two, replace, wait_s=8.0, log_folder=tmp_path).verdicts(items(100))
    assert [verdict.outcome for verdict in verdicts] == expected(100)
    assert len(reasons) == 1
    for part in ("no answer from verifier-1 within 8 s", "the last words"):
        assert part in reasons[0]


def test_an_actor_that_is_lost_too_often_ends_the_batch(two) -> None:
    def replace(name: str, reason: str):
        raise ActorFailed("lost too often", name)

    os.kill(ray.get(_pid_of(two["verifier-0"]), timeout=60), signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ActorFailed, match="lost too often"):
        fleet(two, replace).verdicts(items(100))
    assert time.monotonic() - began < 60


def _pid_of(handle):
    return handle.__ray_call__.remote(lambda _self: os.getpid())
