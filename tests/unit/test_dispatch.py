"""Dispatch on simulated actors and a simulated clock: each request is answered once, whatever happens to workers."""

import random
from collections import Counter

import pytest
import ray.exceptions
from simulated_ray import NEVER, Clock, Ref

from expo_ray.config.errors import ConfigError
from expo_ray.runtime import dispatch, waits
from expo_ray.runtime.dispatch import Fleet
from expo_ray.runtime.process import Place
from expo_ray.runtime.waits import ActorFailed, Waiter, WaitExpired


class Worker:
    """Answers request r with r * r after some time, dies, or stays silent."""

    def __init__(self, clock: Clock, seconds: float = 1.0, dies: bool = False, starts_in: float = 0.0) -> None:
        self.clock, self.seconds, self.dies, self.starts_in = clock, seconds, dies, starts_in
        self.answered: list[int] = []
        self.ready = self

    def remote(self) -> Ref:
        return Ref(self.clock.now + self.starts_in, Place(1, "10.0.0.1", "abc"))

    def ask(self, request: int) -> Ref:
        if self.dies:
            return Ref(self.clock.now + self.seconds, ray.exceptions.RayError("the process is gone"))
        self.answered.append(request)
        return Ref(self.clock.now + self.seconds, request * request)


class AtOnce(Fleet):
    """Replacements serve as soon as they have started."""

    kind = "verifier"

    def admit(self) -> None:
        self.serve(self.workers | self.started())


class AfterSync(Fleet):
    """Replacements serve when nobody else does."""

    kind = "rollout"


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(dispatch, "ray", found)
    monkeypatch.setattr(waits, "ray", found)
    monkeypatch.setattr(waits, "time", found)
    return found


def run(fleet: Fleet, count: int) -> list[int]:
    return fleet.dispatch(range(count), lambda worker, request: worker.ask(request), "squaring")


@pytest.mark.parametrize("kind", [AtOnce, AfterSync])
@pytest.mark.parametrize("seed", range(40))
def test_each_request_is_answered_once_and_in_order(clock, kind, seed):
    draw = random.Random(seed)
    everyone: list[Worker] = []
    lost: Counter[str] = Counter()

    def start(may_fail: bool = True) -> Worker:
        fate = draw.random() if may_fail else 1.0
        worker = Worker(
            clock, NEVER if fate < 0.15 else draw.uniform(0.1, 9), 0.15 <= fate < 0.4, starts_in=draw.uniform(0, 5)
        )
        everyone.append(worker)
        return worker

    def replace(name: str, reason: str) -> Worker:
        assert ("died" in reason) or ("within 10 s" in reason)
        lost[name] += 1
        return start(may_fail=lost[name] < 3)

    fleet = kind({f"w-{i}": start() for i in range(draw.randint(1, 4))}, replace, Waiter(), wait_s=10, start_s=60)
    count = draw.randint(0, 30)
    assert run(fleet, count) == [n * n for n in range(count)]
    # A silent worker keeps the one request that it was given up with; all others count.
    asked = Counter(request for worker in everyone if worker.seconds != NEVER for request in worker.answered)
    assert asked == Counter(range(count))


def test_idle_workers_share_the_work(clock):
    workers = {"w-0": Worker(clock, 1.0), "w-1": Worker(clock, 4.0)}
    run(AtOnce(workers, lambda name, reason: pytest.fail(reason), Waiter(), 10, 10), 10)
    assert len(workers["w-0"].answered) == 8 and len(workers["w-1"].answered) == 2
    assert clock.now == 8.0, "as fast as the two can be"


def test_a_replacement_serves_at_once_or_only_when_nobody_is_left(clock):
    for kind, share in ((AtOnce, 5), (AfterSync, 0)):
        fresh: list[Worker] = []

        def replace(name: str, reason: str, fresh: list[Worker] = fresh) -> Worker:
            fresh.append(Worker(clock, 1.0))
            return fresh[-1]

        run(kind({"w-0": Worker(clock, 1.0), "w-1": Worker(clock, 1.0, dies=True)}, replace, Waiter(), 10, 10), 11)
        assert len(fresh) == 1 and len(fresh[0].answered) == share


def test_one_that_is_lost_too_often_ends_it(clock):
    def replace(name: str, reason: str) -> Worker:
        raise ActorFailed(f"{name} was lost too often: {reason}", name)

    with pytest.raises(ActorFailed, match="w-0 was lost too often: squaring: w-0 died: the process is gone"):
        run(AtOnce({"w-0": Worker(clock, dies=True)}, replace, Waiter(), 10, 10), 3)


@pytest.mark.parametrize(
    ("cause", "raised"),
    [
        (ValueError("The decoder prompt is longer than the context"), ActorFailed),
        (NotImplementedError("this model does not generate"), ActorFailed),
        (ConfigError("model.path=x: its weights lack lm_head.weight"), ConfigError),
    ],
)
def test_what_can_only_fail_again_is_not_tried_again(clock, cause, raised):
    class Refuses(Worker):
        def ask(self, request: int) -> Ref:
            return Ref(self.clock.now + 1, ray.exceptions.RayTaskError("ask", "a traceback", cause))

    fleet = AtOnce({"w-0": Refuses(clock)}, lambda name, reason: pytest.fail("started again"), Waiter(), 10, 10)
    with pytest.raises(raised, match=str(cause)):
        run(fleet, 3)
    assert clock.now == 1.0


def test_other_errors_of_a_worker_are_tried_on_a_replacement(clock):
    class Stumbles(Worker):
        def ask(self, request: int) -> Ref:
            return Ref(self.clock.now + 1, ray.exceptions.RayTaskError("ask", "a traceback", OSError("disk full")))

    fleet = AtOnce({"w-0": Stumbles(clock)}, lambda name, reason: Worker(clock), Waiter(), 10, 10)
    assert run(fleet, 3) == [0, 1, 4]


def test_replacements_that_do_not_start_are_a_bounded_wait(clock):
    fleet = AfterSync(
        {"w-0": Worker(clock, NEVER)}, lambda name, reason: Worker(clock, starts_in=NEVER), Waiter(), 10, start_s=25
    )
    with pytest.raises(WaitExpired, match=r"no rollout worker is left .*'CPU': 2.0.* no answer from w-0 within 25 s"):
        run(fleet, 1)
    assert clock.now == 35.0


def test_a_worker_that_another_thread_took_out_is_not_replaced_twice(clock):
    replaced: list[str] = []

    def replace(name: str, reason: str) -> Worker:
        replaced.append(reason)
        return Worker(clock)

    old = Worker(clock)
    fleet = AfterSync({"w-0": old}, replace, Waiter(), 10, 10)
    fleet.lose("w-0", "seen by the sync", old)
    fleet.lose("w-0", "seen by the sampling", old)
    assert replaced == ["seen by the sync"] and fleet.workers == {}
    fleet.serve(fleet.members())
    fleet.lose("w-0", "late news of the first one", old)
    assert replaced == ["seen by the sync"] and run(fleet, 2) == [0, 1]
