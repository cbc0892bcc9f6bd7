"""Weight sync with real engines: DeepSpeed ranks to vLLM over Gloo, proved, broken on purpose, mended."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from sync_world import Engine, Learner, probes, save_tiny_qwen2

from expo_ray.messages import SyncProof
from expo_ray.sync.proof import SyncProofFailed, prove_sync

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4  # nats; float32 on both sides
WAIT_S = 400  # a bound, not an expectation: the first learner compiles a DeepSpeed op


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_tiny_qwen2(folder / kind, tied=kind == "tied") for kind in ("tied", "untied")}


@pytest.fixture(scope="module")
def tied_engines(local_ray: Any, paths: dict[str, str]) -> dict[str, Any]:
    engines = {f"rollout-{index}": Engine.remote(paths["tied"]) for index in range(2)}
    ray.get([engine.pid.remote() for engine in engines.values()], timeout=WAIT_S)
    return engines


@pytest.fixture
def learners(local_ray: Any, tmp_path: Any) -> Iterator[Any]:
    started: list[Any] = []

    def start(path: str, stage: int, ranks: int) -> list[Any]:
        found = [Learner.remote(rank, ranks, str(tmp_path / "rendezvous"), path, stage) for rank in range(ranks)]
        started.extend(found)
        return found

    yield start
    for learner in started:
        ray.kill(learner)


def on_all(learners: list[Any], method: str, *arguments: Any) -> list[Any]:
    return ray.get([getattr(learner, method).remote(*arguments) for learner in learners], timeout=WAIT_S)


def sync_and_prove(learners: list[Any], engines: dict[str, Any], version: int) -> SyncProof:
    report = on_all(learners, "send", version)[0]
    sequences = probes(version)
    learner = on_all(learners, "probe", sequences, version)[0]
    found = ray.get([engine.sync_probe.remote(sequences) for engine in engines.values()], timeout=WAIT_S)
    return prove_sync(
        sequences,
        learner,
        dict(zip(engines, found, strict=True)),
        weight_version=version,
        tolerance=TOLERANCE,
        bytes_sent=report.bytes_sent,
        seconds=report.seconds,
    )


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (2, 2), (3, 2)])
def test_two_tied_engines_follow_the_learners(
    stage: int, ranks: int, learners: Any, tied_engines: dict[str, Any], paths: dict[str, str]
) -> None:
    ranks_started = learners(paths["tied"], stage, ranks)
    on_all(ranks_started, "connect", tied_engines)
    seen = []
    for version in (1, 2):
        on_all(ranks_started, "train", version)
        proof = sync_and_prove(ranks_started, tied_engines, version)
        assert proof.worker_versions == [version, version]
        assert proof.max_difference <= TOLERANCE
        assert proof.bytes_sent > 100_000
        seen.append(on_all(ranks_started, "probe", probes(0), version)[0].logprobs[0])
    # The updates move the weights by far more than the proof tolerates, so the proof above says something.
    assert abs(seen[0] - seen[1]).max() > 100 * TOLERANCE
    if stage == 3:
        worst, whole = on_all(ranks_started, "gathered_at_once")[0]
        assert 0 < worst <= 40_000 < whole / 4


def test_a_corrupted_tensor_is_caught(learners: Any, tied_engines: dict[str, Any], paths: dict[str, str]) -> None:
    ranks = learners(paths["tied"], 2, 1)
    on_all(ranks, "connect", tied_engines)
    sync_and_prove(ranks, tied_engines, 1)
    on_all(ranks, "corrupt", "model.layers.1.mlp.down_proj.weight", 0.05)
    with pytest.raises(SyncProofFailed, match=r"rollout-0 does not hold the learner's weights at version 2: probe \d"):
        sync_and_prove(ranks, tied_engines, 2)


def test_probes_leave_sampling_alone(tied_engines: dict[str, Any]) -> None:
    engine = tied_engines["rollout-0"]
    apart = ray.get(engine.probe_and_sample.remote(probes(), False), timeout=WAIT_S)
    between = ray.get(engine.probe_and_sample.remote(probes(), True), timeout=WAIT_S)
    assert apart == between
    assert apart[0] != apart[1]


def test_untied_engine_and_a_version_that_differs(learners: Any, local_ray: Any, paths: dict[str, str]) -> None:
    engines = {"rollout-0": Engine.remote(paths["untied"])}
    ranks = learners(paths["untied"], 3, 1)
    on_all(ranks, "connect", engines)
    on_all(ranks, "train", 1)
    assert sync_and_prove(ranks, engines, 7).worker_versions == [7]
    ray.get(engines["rollout-0"].update_weight_version.remote(6), timeout=WAIT_S)
    sequences = probes()
    learner = on_all(ranks, "probe", sequences, 7)[0]
    stale = ray.get(engines["rollout-0"].sync_probe.remote(sequences), timeout=WAIT_S)
    with pytest.raises(SyncProofFailed, match="rollout-0 holds weight version 6, expected 7"):
        prove_sync(
            sequences,
            learner,
            {"rollout-0": stale},
            weight_version=7,
            tolerance=TOLERANCE,
            bytes_sent=0,
            seconds=0,
        )
    ray.kill(engines["rollout-0"])


def test_without_mending_the_tied_head_stays_old(
    learners: Any, tied_engines: dict[str, Any], paths: dict[str, str]
) -> None:
    """vLLM's reload alone leaves the old head on CPU; the proof must see it."""
    engine = Engine.remote(paths["tied"])
    ray.get(engine.without_mending.remote(), timeout=WAIT_S)
    ranks = learners(paths["tied"], 1, 1)
    on_all(ranks, "connect", {"unmended": engine})
    on_all(ranks, "train", 1)
    with pytest.raises(SyncProofFailed, match="unmended does not hold the learner's weights"):
        sync_and_prove(ranks, {"unmended": engine}, 1)
    ray.kill(engine)


def test_a_worker_that_hangs_is_named_and_the_others_go_on(
    learners: Any, tied_engines: dict[str, Any], paths: dict[str, str]
) -> None:
    """Runs last: it loses an engine."""
    ranks = learners(paths["tied"], 3, 2)
    bound_s = 6.0
    on_all(ranks, "connect", tied_engines, bound_s)
    sync_and_prove(ranks, tied_engines, 1)
    hanging = ray.get(tied_engines["rollout-1"].pid.remote(), timeout=WAIT_S)
    os.kill(hanging, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(Exception, match=r"SyncTimeout.*rollout-1 did not finish phase start within 6 s"):
            on_all(ranks, "send", 2)
        assert time.monotonic() - began < bound_s + 8
    finally:
        os.kill(hanging, signal.SIGKILL)
    left = {"rollout-0": tied_engines["rollout-0"]}
    on_all(ranks, "train", 3)
    on_all(ranks, "reconnect", left)
    assert sync_and_prove(ranks, left, 3).worker_versions == [3]
