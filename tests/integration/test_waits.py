"""Bounded waits on real actors: late, failing and killed ones are named, with the last line of their logs."""

import os
import signal
import sys
import time

import pytest

from expo_ray.runtime.waits import ActorFailed, Waiter, WaitExpired


class Worker:
    def pid(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    def fail(self) -> None:
        raise ValueError("the engine is out of blocks")


@pytest.fixture(scope="module")
def workers(local_ray):
    local_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    handles = {f"rollout-{i}": local_ray.remote(Worker).options(num_cpus=0).remote() for i in range(2)}
    local_ray.get([handle.pid.remote() for handle in handles.values()], timeout=60)
    return handles


@pytest.fixture
def waiter(tmp_path) -> Waiter:
    (tmp_path / "rollout-1.log").write_text("loading\nwaiting for the sky to fall\n\n")
    return Waiter(str(tmp_path))


def test_answers_come_in_the_order_of_the_question(workers, waiter):
    refs = {"rollout-0": workers["rollout-0"].sleep.remote(0.5), "rollout-1": workers["rollout-1"].sleep.remote(0)}
    assert list(waiter.gather(refs, "sleeping", 30).items()) == [("rollout-0", "done"), ("rollout-1", "done")]


def test_a_late_actor_is_named_with_its_last_log_line(workers, waiter):
    refs = {"rollout-0": workers["rollout-0"].sleep.remote(0), "rollout-1": workers["rollout-1"].sleep.remote(4)}
    with pytest.raises(WaitExpired) as found:
        waiter.gather(refs, "generate for step 3", 1)
    assert found.value.actors == ["rollout-1"]
    for part in ("generate for step 3", "rollout-1", "1 s", "waiting for the sky to fall"):
        assert part in str(found.value)
    assert "rollout-0" not in str(found.value)


def test_an_error_inside_an_actor_ends_the_wait_at_once(workers, waiter):
    refs = {"rollout-0": workers["rollout-0"].fail.remote(), "rollout-1": workers["rollout-1"].sleep.remote(20)}
    with pytest.raises(ActorFailed, match=r"rollout-0 failed: ValueError.*out of blocks") as found:
        waiter.gather(refs, "generate", 60)
    assert found.value.actor == "rollout-0"


def test_a_killed_actor_ends_the_wait(workers, waiter, local_ray):
    doomed = local_ray.remote(Worker).options(num_cpus=0).remote()
    pid = local_ray.get(doomed.pid.remote(), timeout=60)
    ref = doomed.sleep.remote(60)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorFailed, match=r"generate: rollout-1 died.*waiting for the sky to fall"):
        waiter.gather({"rollout-1": ref}, "generate", 40)
