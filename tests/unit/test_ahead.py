"""Sampling ahead: when each step is sampled, with which weights, and that no step is lost."""

import threading
from dataclasses import replace

import pytest

from expo_ray.config.schema import Config
from expo_ray.driver.groups import Ahead
from expo_ray.driver.record import StepRecord
from expo_ray.driver.stopping import LimitExceeded, check_staleness, staleness
from expo_ray.messages import Group
from expo_ray.rollout.requests import LengthBook
from tests.unit.test_lengths import group

STEPS = 7


class FakeCollector:
    """Records the weight version at which sampling of each step began."""

    def __init__(self, fails_at: int = -1) -> None:
        self.version, self.begun, self.fails_at = 0, {}, fails_at
        self.lengths = LengthBook()
        self.stream = self
        self.learned: list[int] = []
        self.free = threading.Event()
        self.free.set()

    def groups(self, step: int, record: StepRecord):
        assert step not in self.begun, "a step was sampled twice"
        self.begun[step] = self.version
        assert self.free.wait(20)
        if step == self.fails_at:
            raise RuntimeError("the engines are gone")
        record.count({"tokens/generated": 5.0})
        with record.phase("generate"):
            return [group(f"p{step}", [step + 1], [])]

    def learn(self, step: int, groups: list[Group]) -> None:
        """The stream's: pass rates are learned from each step's groups, in the order of the steps."""
        assert [g.rollout.prompt.problem.uid for g in groups] == [f"p{step}"]
        self.learned.append(step)


def ahead(async_steps: int, collector: FakeCollector) -> Ahead:
    config = Config()
    config.trainer.async_steps, config.trainer.steps = async_steps, STEPS
    return Ahead(config, collector)


def train(mine: Ahead, collector: FakeCollector) -> list[str]:
    trained = []
    for step in range(STEPS):
        record = StepRecord(step)
        trained += [g.rollout.prompt.problem.uid for g in mine.groups(step, record)]
        assert record.metrics["tokens/generated"] == 5
        mine.settle()  # an update that takes longer than the sampling
        collector.version = step + 1
    mine.close()
    return trained


@pytest.mark.parametrize("async_steps", [0, 1, 3])
def test_every_step_is_sampled_once_with_weights_no_older_than_allowed(async_steps):
    collector = FakeCollector()
    assert train(ahead(async_steps, collector), collector) == [f"p{step}" for step in range(STEPS)]
    assert collector.begun == {step: max(0, step - async_steps) for step in range(STEPS)}
    assert collector.learned == list(range(STEPS))


def test_background_times_have_their_own_names():
    collector = FakeCollector()
    mine, record = ahead(1, collector), StepRecord(0)
    mine.groups(0, record)
    mine.close()
    assert set(record.seconds) == {"wait", "beside_generate"}


def test_an_error_while_sampling_ahead_is_raised_when_its_groups_are_requested():
    collector = FakeCollector(fails_at=1)
    mine = ahead(1, collector)
    mine.groups(0, StepRecord(0))
    mine.settle()
    with pytest.raises(RuntimeError, match="engines are gone"):
        mine.groups(1, StepRecord(1))
    mine.close()


def test_close_waits_for_the_present_step_and_starts_no_other():
    collector = FakeCollector()
    mine = ahead(3, collector)
    mine.groups(0, StepRecord(0))
    mine.settle()
    collector.free.clear()
    mine.groups(1, StepRecord(1))  # begins step 4, which hangs
    threading.Timer(0.2, collector.free.set).start()
    mine.close()
    assert set(collector.begun) <= {0, 1, 2, 3, 4}


def test_staleness_is_measured_and_bounded():
    config = Config()
    config.trainer.async_steps = 1
    fresh, old = group("a", [3], [2]), group("b", [3, 3], [])
    assert staleness([fresh, old], 0) == {"staleness/mean": 0, "staleness/max": 0}
    assert staleness([fresh], 2) == {"staleness/mean": 2, "staleness/max": 2}
    assert staleness([], 2) == {}
    check_staleness([fresh], 1, config)
    guided = replace(group("b", [], []), guided=fresh)  # what was drawn again counts too
    assert staleness([guided], 2)["staleness/max"] == 2
    with pytest.raises(LimitExceeded, match=r"problem a"):
        check_staleness([guided], 2, config)
    with pytest.raises(LimitExceeded, match=r"problem a was sampled with weights of version 0 for step 2; .* allows 1"):
        check_staleness([fresh], 2, config)
    config.trainer.async_steps = 0
    with pytest.raises(LimitExceeded):
        check_staleness([fresh], 1, config)
