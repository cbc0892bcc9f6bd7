"""Engines that share cards with learners: who sleeps and wakes when, where bundles go, what a sync does in between."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from expo_ray.config.schema import Config
from expo_ray.driver.actors import strategy
from expo_ray.driver.weights import WeightSync
from expo_ray.messages import Problem, Prompt
from expo_ray.rollout.engine import EngineLoop
from expo_ray.rollout.worker import RolloutWorker
from expo_ray.runtime.waits import ActorFailed
from expo_ray.sync.gloo import loading
from expo_ray.sync.proof import Probe, SyncProofFailed


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


def pushed(version: int, every: int, held: tuple[int, int] = (1, 1)) -> tuple[list[str], int]:
    """The calls of one sync, and how many tensors it compared."""
    calls: list[str] = []
    probe = Probe(version, [np.zeros(2, np.float32)] * 4)
    rollouts = SimpleNamespace(
        members=lambda: {"rollout-0": "handle"},
        serve=lambda members: calls.append("serve"),
        wake=lambda members, part: calls.append(f"wake {part}"),
        probe=lambda members, sequences: calls.append("probe") or {"rollout-0": probe},
        digests=lambda members: calls.append("digests") or {"rollout-0": {"w": held}},
    )
    learners = SimpleNamespace(
        turn=EngineLoop(None, 1.0)._door,
        weight_version=0,
        connect=lambda members: calls.append("connect"),
        send=lambda version: calls.append("send") or (8, 0.1),
        score=lambda pairs: [np.zeros(2, np.float32) for _ in pairs],
        all=lambda method, what: [{"w": (1, 1)}, {}],
    )
    config = Config()
    config.sync.probe_tokens, config.sync.digest_every = 3, every
    ids = np.arange(9, dtype=np.int32)
    sync = WeightSync(config, learners, rollouts, [Prompt(Problem("p", "q", ("1",)), ids, ids)] * 4)
    proof = sync.push(version)
    assert proof.weight_version == version
    return calls, proof.tensors_compared


def test_a_sync_wakes_weights_before_it_and_the_cache_after_it():
    assert pushed(1, every=0) == (["connect", "wake weights", "send", "wake kv_cache", "probe", "serve"], 0)


def test_every_kth_sync_compares_bits_before_the_engine_samples_again():
    compared = ["connect", "wake weights", "send", "digests", "wake kv_cache", "probe", "serve"]
    assert pushed(0, every=3) == (compared, 1)
    assert pushed(6, every=3) == (compared, 1)
    assert "digests" not in pushed(7, every=3)[0]
    with pytest.raises(SyncProofFailed, match=r"rollout-0 does not hold .* version 6: 1 of 1 tensors .* first w"):
        pushed(6, every=3, held=(1, 2))
    pushed(7, every=3, held=(1, 2))


@pytest.mark.parametrize(("most", "longest"), [(1, 9), (2, 10), (64, 18)])
def test_a_probe_leaves_room_for_the_token_that_the_engine_samples_after_it(most, longest):
    """The engines' context is the longest prompt, here 9 tokens, and the longest completion."""
    config = Config()
    config.rollout.max_completion_tokens = most
    ids = np.arange(9, dtype=np.int32)
    prompts = [Prompt(Problem("p", "q", ("1",)), ids, ids, gold_ids=ids)] * 4
    sync = WeightSync(config, SimpleNamespace(), SimpleNamespace(), prompts)
    assert {len(probe) for probe in sync.probes} == {longest}


def test_a_refused_probe_ends_the_sync_at_once():
    def probe(members, sequences):
        raise ActorFailed("probing: rollout-0 failed", "rollout-0", ValueError("longer than the context"))

    rollouts = SimpleNamespace(
        members=lambda: {"rollout-0": "handle"},
        wake=lambda members, part: None,
        lose=lambda *_: pytest.fail("started again"),
        probe=probe,
    )
    learners = SimpleNamespace(
        turn=EngineLoop(None, 1.0)._door, connect=lambda m: None, send=lambda v: (8, 0.1), score=lambda pairs: []
    )
    ids = np.arange(9, dtype=np.int32)
    sync = WeightSync(Config(), learners, rollouts, [Prompt(Problem("p", "q", ("1",)), ids, ids)] * 4)
    with pytest.raises(ActorFailed, match="rollout-0 failed"):
        sync.push(1)


def test_an_engine_whose_layers_are_not_known_is_not_started_again_for_its_digests(monkeypatch):
    """A model of the hub: its architecture is not known before it is loaded."""
    monkeypatch.setattr(loading, "direct_loader", lambda model: None)
    with pytest.raises(Exception, match=r"cannot compare Linear tensor by tensor: use sync\.digest_every=0") as caught:
        loading.held_digests(torch.nn.Linear(1, 1))
    assert ActorFailed("comparing: rollout-0 failed", "rollout-0", caught.value).refused


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
