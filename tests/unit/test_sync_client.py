"""The calls of a weight sync on simulated workers: one deadline for all, and errors that name worker and phase."""

from collections.abc import Callable
from typing import Any

import pytest
import ray.exceptions
from simulated_ray import NEVER, Clock, Ref

from expo_ray.runtime import waits
from expo_ray.runtime.waits import Deadline
from expo_ray.sync import SyncError, SyncTimeout, sender
from expo_ray.sync.sender import BoundedWeightSyncClient


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(sender, "ray", found)
    monkeypatch.setattr(sender, "time", found)
    monkeypatch.setattr(waits, "ray", found)
    monkeypatch.setattr(waits, "time", found)
    return found


class Worker:
    """Answers every method after some seconds, and records its calls."""

    def __init__(self, clock: Clock, seconds: float = 1.0, error: Exception | None = None) -> None:
        self.clock, self.seconds, self.error = clock, seconds, error
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Ref:
            self.calls.append((method, arguments))
            return Ref(self.clock.now + self.seconds, self.error)

        return type("Method", (), {"remote": staticmethod(remote)})


def raised(error: Exception) -> Exception:
    return ray.exceptions.RayTaskError("update_weights", "traceback", error)


def test_a_round_calls_every_worker_and_times_its_phases(clock):
    workers = {"rollout-0": Worker(clock, 1.0), "rollout-1": Worker(clock, 3.0)}
    client = BoundedWeightSyncClient(workers, Deadline(60), ranks_per_worker=2)
    client.init_weight_transfer_engine({"rank_offset": 1, "port": 5})
    client.weight_version = 7
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.finish_weight_update()
    assert client.seconds == {"connect": 3.0, "start": 3.0, "update": 3.0, "finish": 3.0}
    offsets = [worker.calls[0][1][0]["init_info"] for worker in workers.values()]
    assert offsets == [{"rank_offset": 1, "port": 5}, {"rank_offset": 3, "port": 5}]
    assert [method for method, _ in workers["rollout-1"].calls] == [
        "init_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
    ]
    assert workers["rollout-0"].calls[-1][1] == ("7",)
    assert (client.phase, client.waiting_for) == ("", [])


def test_one_deadline_bounds_all_calls_together(clock):
    workers = {"rollout-0": Worker(clock, 4.0), "rollout-1": Worker(clock, 1.0)}
    client = BoundedWeightSyncClient(workers, Deadline(10))
    client.start_weight_update()
    client.update_weights({})
    with pytest.raises(
        SyncTimeout, match=r"^rollout worker rollout-0 did not finish phase finish within 10 s$"
    ) as late:
        client.finish_weight_update()
    assert clock.now == 10.0 and late.value.workers == ("rollout-0",)
    client.deadline = Deadline(10)
    client.start_weight_update()
    assert clock.now == 14.0


def test_all_late_workers_are_named(clock):
    workers = {f"rollout-{i}": Worker(clock, NEVER if i else 1.0) for i in range(3)}
    client = BoundedWeightSyncClient(workers, Deadline(5))
    with pytest.raises(SyncTimeout, match="rollout workers rollout-1, rollout-2 did not finish phase start") as late:
        client.start_weight_update()
    assert late.value.workers == ("rollout-1", "rollout-2")
    assert client.waiting_for == ["rollout-1", "rollout-2"], "for the thread that gives the transfer up"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: raised(ValueError("sideways does not fit\nmore")), "ValueError: sideways does not fit"),
        (lambda: raised(ValueError()), "ValueError: "),
        (lambda: ray.exceptions.RayActorError(error_msg="the actor is gone\nits node too"), "RayActorError: "),
    ],
)
def test_a_worker_that_fails_ends_the_call_at_once_with_its_reason(clock, make: Callable[[], Exception], reason: str):
    workers = {"rollout-0": Worker(clock, NEVER), "rollout-1": Worker(clock, 2.0, make())}
    client = BoundedWeightSyncClient(workers, Deadline(60))
    with pytest.raises(SyncError) as found:
        client.update_weights({})
    assert str(found.value).startswith(f"rollout worker rollout-1 failed in phase update: {reason}")
    assert "\n" not in str(found.value)
    assert found.value.workers == ("rollout-1",) and not isinstance(found.value, SyncTimeout)
    assert clock.now == 2.0
