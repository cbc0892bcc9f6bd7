"""The rollout fleet on real Ray actors without engines: whoever is lost, each request is answered once and alike."""

import os
import signal
import sys
import time
from collections import Counter

import numpy as np
import pytest

from expo_ray.messages import Problem, Prompt, RolloutRequest, Sampling
from expo_ray.rollout.fleet import RolloutFleet
from expo_ray.runtime.waits import ActorFailed, Waiter, WaitExpired

SAMPLING = Sampling(1.0, 1.0, 0, 8)


class FakeWorker:
    """Answers each request with its problem's id and the seed it was asked with."""

    def __init__(self, slow_s: float = 0.0, fails: bool = False, log: str | None = None) -> None:
        self.slow_s, self.fails, self.log = slow_s, fails, log

    def ready(self):
        from expo_ray.runtime.process import here

        return here()

    def generate(self, requests, sampling, seed):
        time.sleep(self.slow_s)
        if self.fails:
            raise RuntimeError("the engine is dead")
        if self.log:
            with open(self.log, "a") as file:
                file.writelines(f"{request.prompt.problem.uid}\n" for request in requests)
        return [(request.prompt.problem.uid, seed) for request in requests]


@pytest.fixture(scope="module")
def start(local_ray):
    local_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def spawn(**arguments):
        return local_ray.remote(FakeWorker).options(num_cpus=0).remote(**arguments)

    return spawn


def requests(count: int) -> list[RolloutRequest]:
    ids = np.array([1], np.int32)
    return [RolloutRequest(Prompt(Problem(f"p{i}", "q", ("1",)), ids, ids), 1, 0) for i in range(count)]


def fleet(workers, replace, tmp_path, wait_s=60.0, start_s=60.0) -> RolloutFleet:
    return RolloutFleet(workers, replace, Waiter(str(tmp_path)), wait_s, start_s)


def never(name: str, reason: str):
    pytest.fail(f"{name} was replaced: {reason}")


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    workers = {f"rollout-{i}": start() for i in range(2)}
    return fleet(workers, never, tmp_path_factory.mktemp("logs")).generate(requests(7), SAMPLING, (0, 3))


def test_answers_come_in_order_and_shares_have_seeds_of_their_own(undisturbed):
    assert [uid for uid, _ in undisturbed] == [f"p{i}" for i in range(7)]
    assert sorted(Counter(seed for _, seed in undisturbed).values()) == [3, 4], "two shares, as even as can be"


def test_a_killed_workers_share_goes_to_the_other_with_the_same_seed(start, undisturbed, local_ray, tmp_path):
    answered = tmp_path / "answered"
    workers = {"rollout-0": start(log=str(answered)), "rollout-1": start(slow_s=30)}
    pid = local_ray.get(workers["rollout-1"].ready.remote(), timeout=60).pid
    replaced = []

    def replace(name, reason):
        replaced.append((name, reason))
        return start()

    mine = fleet(workers, replace, tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert mine.generate(requests(7), SAMPLING, (0, 3)) == undisturbed
    assert [name for name, _ in replaced] == ["rollout-1"]
    assert "died" in replaced[0][1]
    assert sorted(answered.read_text().split()) == [f"p{i}" for i in range(7)]
    assert list(mine.workers) == ["rollout-0"], "a replacement serves only after a sync"
    deadline = time.monotonic() + 60
    while len(mine.members()) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert list(mine.members()) == ["rollout-0", "rollout-1"]


def test_a_late_worker_is_given_up_within_the_bound(start, undisturbed, tmp_path):
    workers = {"rollout-0": start(), "rollout-1": start(slow_s=120)}
    reasons = []

    def replace(name, reason):
        reasons.append(reason)
        return start()

    began = time.monotonic()
    assert fleet(workers, replace, tmp_path, wait_s=5).generate(requests(7), SAMPLING, (0, 3)) == undisturbed
    assert time.monotonic() - began < 60
    assert len(reasons) == 1
    assert "no answer from rollout-1 within 5 s" in reasons[0]


def test_the_last_worker_lost_waits_for_its_replacement_and_refreshes_it(start, undisturbed, tmp_path):
    workers = {"rollout-0": start(fails=True), "rollout-1": start(fails=True)}
    mine = fleet(workers, lambda name, reason: start(), tmp_path)
    refreshed = []

    def refresh():
        refreshed.append(1)
        mine.serve(mine.members())

    mine.refresh = refresh
    assert mine.generate(requests(7), SAMPLING, (0, 3)) == undisturbed
    assert refreshed


def test_a_worker_lost_too_often_ends_it_with_the_reason(start, tmp_path):
    def replace(name, reason):
        raise ActorFailed(f"{name} was lost too often: {reason}", name)

    with pytest.raises(ActorFailed, match=r"lost too often: .*the engine is dead"):
        fleet({"rollout-0": start(fails=True)}, replace, tmp_path).generate(requests(2), SAMPLING, (0,))


def test_no_room_for_a_replacement_is_a_bounded_wait_that_says_so(start, local_ray, tmp_path):
    def replace(name, reason):
        return local_ray.remote(FakeWorker).options(num_cpus=0, resources={"nowhere": 1}).remote()

    mine = fleet({"rollout-0": start(fails=True)}, replace, tmp_path, start_s=4)
    began = time.monotonic()
    with pytest.raises(WaitExpired, match=r"no rollout worker is left .*add a node.*within 4 s"):
        mine.generate(requests(2), SAMPLING, (0,))
    assert time.monotonic() - began < 30


def test_a_worker_that_sampling_and_sync_both_find_lost_is_replaced_once(start, tmp_path):
    old = {"rollout-0": start(), "rollout-1": start()}
    replaced = []

    def replace(name, reason):
        replaced.append(reason)
        return start()

    mine = fleet(dict(old), replace, tmp_path)
    mine.lose("rollout-0", "seen by the sync", old["rollout-0"])
    mine.lose("rollout-0", "seen by the sampling", old["rollout-0"])
    assert replaced == ["seen by the sync"]
    deadline = time.monotonic() + 60
    while len(members := mine.members()) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    mine.serve(members)
    mine.lose("rollout-0", "late news of the first one", old["rollout-0"])
    assert replaced == ["seen by the sync"] and mine.workers == members
