"""Engines that share cards with learners: who sleeps and wakes when, where bundles go, what a sync does in between."""

from types import SimpleNamespace

import numpy as np
import pytest

from expo_ray.config.schema import Config
from expo_ray.driver.actors import strategy
from expo_ray.driver.weights import WeightSync
from expo_ray.messages import Problem, Prompt
from expo_ray.rollout.engine import EngineLoop
from expo_ray.rollout.worker import RolloutWorker
from expo_ray.sync.proof import Probe


class FakeLlm:
    """vLLM's sleep and wake by tags, with what it would refuse."""

    def __init__(self) -> None:
        self.holds = {"weights", "kv_cache"}
        self.calls: list[str] = []

    def sleep(self, level):
        assert self.holds == {"weights", "kv_cache"}, "asleep already"
        self.holds = set()
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags):
        assert not self.holds & set(tags), "awake already"
        self.holds |= set(tags)
        self.calls += tags


def worker(llm: FakeLlm) -> RolloutWorker:
    mine = object.__new__(RolloutWorker)
    mine.engine, mine.asleep = EngineLoop(llm, 1.0), False
    return mine


def test_an_engine_wakes_in_two_parts_and_only_if_it_sleeps():
    llm = FakeLlm()
    mine = worker(llm)
    mine.wake("weights")
    assert llm.calls == []
    mine.sleep()
    mine.sleep()
    assert llm.holds == set() and mine.engine.paused, "an engine without weights must not sample"
    mine.wake("weights")
    assert llm.holds == {"weights"} and mine.engine.paused
    mine.wake("kv_cache")
    assert llm.holds == {"weights", "kv_cache"}
    assert llm.calls == ["sleep 2", "weights", "kv_cache"]


def test_a_sync_wakes_weights_before_it_and_the_cache_after_it():
    calls: list[str] = []
    probe = Probe(1, [np.zeros(2, np.float32)] * 4)
    rollouts = SimpleNamespace(
        members=lambda: {"rollout-0": "handle"},
        serve=lambda members: calls.append("serve"),
        wake=lambda members, part: calls.append(f"wake {part}"),
        probe=lambda members, sequences: calls.append("probe") or {"rollout-0": probe},
    )
    learners = SimpleNamespace(
        turn=EngineLoop(None, 1.0)._door,
        weight_version=0,
        connect=lambda members: calls.append("connect"),
        send=lambda version: calls.append("send") or (8, 0.1),
        score=lambda pairs: [np.zeros(2, np.float32) for _ in pairs],
    )
    config = Config()
    config.sync.probe_tokens = 3
    ids = np.arange(9, dtype=np.int32)
    sync = WeightSync(config, learners, rollouts, [Prompt(Problem("p", "q", ("1",)), ids, ids)] * 4)
    assert sync.push(1).weight_version == 1
    assert calls == ["connect", "wake weights", "send", "wake kv_cache", "probe", "serve"]


@pytest.mark.parametrize(
    "rooms, expected",
    [
        ([{"GPU": 8, "CPU": 32}], "STRICT_PACK"),
        ([{"GPU": 4, "CPU": 32}, {"GPU": 4, "CPU": 32}], "PACK"),
        ([{"GPU": 2, "CPU": 9}, {"GPU": 8, "CPU": 12}], "STRICT_PACK"),
        ([{"GPU": 8, "CPU": 5}, {"GPU": 8, "CPU": 5}], "PACK"),
    ],
)
def test_everything_goes_to_one_node_where_one_has_room(rooms, expected):
    bundles = [{"GPU": 1, "CPU": 2}] * 6
    assert strategy(bundles, [{"Alive": True, "Resources": room} for room in rooms]) == expected


def test_a_dead_node_has_no_room():
    nodes = [{"Alive": False, "Resources": {"GPU": 8}}, {"Alive": True, "Resources": {"GPU": 1}}]
    assert strategy([{"GPU": 1}, {"GPU": 1}], nodes) == "PACK"
