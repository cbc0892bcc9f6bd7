"""Weight sync with real engines: DeepSpeed ranks to vLLM over Gloo, proved, broken on purpose, mended."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from sync_world import Engine, Learner, probes, save_tiny_qwen2

from expo_ray.messages import SyncProof
from expo_ray.sync.proof import AS_HEAD, SyncProofFailed, compare_digests, prove_sync

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4  # nats; float32 on both sides
WAIT_S = 400  # a bound, not an expectation: the first learner compiles a DeepSpeed op


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sync")


@pytest.fixture(scope="module")
def paths(folder: Path) -> dict[str, str]:
    return {kind: save_tiny_qwen2(folder / kind, tied=kind == "tied") for kind in ("tied", "untied")}


@pytest.fixture(scope="module")
def engines(local_ray: Any, paths: dict[str, str]) -> dict[str, Any]:
    """Two engines of the tied model."""
    started = {f"rollout-{index}": Engine.remote(paths["tied"]) for index in range(2)}
    ray.get([engine.pid.remote() for engine in started.values()], timeout=WAIT_S)
    return started


@pytest.fixture(scope="module")
def one(local_ray: Any, folder: Path) -> list[Any]:
    """A single learner rank."""
    return [Learner.remote(0, 1, str(folder / "one"))]


@pytest.fixture(scope="module")
def two(local_ray: Any, folder: Path) -> list[Any]:
    """Two learner ranks in one group."""
    return [Learner.remote(rank, 2, str(folder / "two")) for rank in range(2)]


def call(learners: list[Any], method: str, *arguments: Any) -> list[Any]:
    return ray.get([getattr(learner, method).remote(*arguments) for learner in learners], timeout=WAIT_S)


def sync_and_prove(learners: list[Any], engines: dict[str, Any], version: int) -> SyncProof:
    report = call(learners, "send", version)[0]
    sequences = probes(version)
    learner = call(learners, "probe", sequences, version)[0]
    found = ray.get([engine.sync_probe.remote(sequences) for engine in engines.values()], timeout=WAIT_S)
    return prove_sync(
        sequences,
        learner,
        dict(zip(engines, found, strict=True)),
        weight_version=version,
        tolerance=TOLERANCE,
        mean_tolerance=TOLERANCE,
        bytes_sent=report.bytes_sent,
        seconds=report.seconds,
    )


@pytest.mark.parametrize(("ranks", "stage"), [("one", 1), ("two", 1), ("two", 2), ("two", 3)])
def test_two_tied_engines_follow_the_learners(
    ranks: str, stage: int, request: pytest.FixtureRequest, engines: dict[str, Any], paths: dict[str, str]
) -> None:
    learners = request.getfixturevalue(ranks)
    call(learners, "load", paths["tied"], stage)
    call(learners, "connect", engines)
    seen = []
    for version in (1, 2):
        call(learners, "train", version)
        proof = sync_and_prove(learners, engines, version)
        assert proof.worker_versions == [version, version]
        assert proof.max_difference <= TOLERANCE
        assert proof.bytes_sent > 100_000
        seen.append(call(learners, "probe", probes(0), version)[0].logprobs[0])
    # The updates move the weights by far more than the proof tolerates, so the proof above says something.
    assert abs(seen[0] - seen[1]).max() > 100 * TOLERANCE
    assert call(learners, "has_imported", "vllm") == [False] * len(learners), "its import takes seconds"
    if stage == 3:
        worst, whole = call(learners, "gathered_at_once")[0]
        assert 0 < worst <= 40_000 < whole / 4


def test_a_corrupted_tensor_is_caught(one: list[Any], engines: dict[str, Any], paths: dict[str, str]) -> None:
    call(one, "load", paths["tied"], 2)
    call(one, "connect", engines)
    sync_and_prove(one, engines, 1)
    call(one, "corrupt", "model.layers.1.mlp.down_proj.weight", 0.05)
    with pytest.raises(SyncProofFailed, match=r"rollout-0 does not hold the learner's weights at version 2: probe \d"):
        sync_and_prove(one, engines, 2)


def test_one_flipped_bit_is_found_and_named_where_log_probabilities_see_nothing(
    one: list[Any], engines: dict[str, Any], paths: dict[str, str]
) -> None:
    call(one, "load", paths["tied"], 2)
    call(one, "connect", engines)
    call(one, "train", 1)
    sync_and_prove(one, engines, 1)
    learner = call(one, "digests")[0]

    def held() -> dict[str, Any]:
        found = ray.get([engine.sync_digests.remote() for engine in engines.values()], timeout=WAIT_S)
        return dict(zip(engines, found, strict=True))

    assert compare_digests(learner, held(), 1) == 2 * 12 + 2  # two layers, embedding and last norm; the head is tied
    assert any(name.endswith(AS_HEAD) for name in held()["rollout-0"])
    wrong = "model.layers.1.self_attn.k_proj.weight"
    ray.get(engines["rollout-1"].flip_bit.remote(wrong), timeout=WAIT_S)
    with pytest.raises(SyncProofFailed, match=f"^rollout-1 .* at version 1: 1 of 27 tensors have .*first {wrong}$"):
        compare_digests(learner, held(), 1)
    sequences = probes(1)
    proof = prove_sync(
        sequences,
        call(one, "probe", sequences, 1)[0],
        {"rollout-1": ray.get(engines["rollout-1"].sync_probe.remote(sequences), timeout=WAIT_S)},
        weight_version=1,
        tolerance=TOLERANCE,
        mean_tolerance=TOLERANCE,
        bytes_sent=0,
        seconds=0,
    )
    assert proof.max_difference <= TOLERANCE
    sync_and_prove(one, engines, 2)
    assert compare_digests(call(one, "digests")[0], held(), 2)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_live_parameters_hold_the_same_bits_as_after_a_reload(
    kind: str, local_ray: Any, paths: dict[str, str], folder: Path
) -> None:
    """The GPU's way to receive, on an engine whose CPU kernels use parameters as they are loaded."""
    other = save_tiny_qwen2(folder / f"other_{kind}", tied=kind == "tied", seed=7)
    engine = Engine.remote(paths[kind], packs=False)
    found = ray.get(engine.live_and_reloaded.remote(other), timeout=WAIT_S)
    ray.kill(engine)
    assert found["parameters"] > 10
    assert (found["differ"], found["moved"]) == ([], [])
    assert [name for name in found["kept"] if "norm" not in name and "bias" not in name] == []
    assert "the round ended without" in found["incomplete"]


def test_probes_leave_sampling_alone(engines: dict[str, Any]) -> None:
    engine = engines["rollout-0"]
    apart = ray.get(engine.probe_and_sample.remote(probes(), False), timeout=WAIT_S)
    between = ray.get(engine.probe_and_sample.remote(probes(), True), timeout=WAIT_S)
    assert apart == between
    assert apart[0] != apart[1]


def test_untied_engine_and_a_version_that_differs(one: list[Any], paths: dict[str, str]) -> None:
    engine = Engine.remote(paths["untied"])
    call(one, "load", paths["untied"], 3)
    call(one, "connect", {"untied": engine})
    call(one, "train", 1)
    assert sync_and_prove(one, {"untied": engine}, 7).worker_versions == [7]
    assert ray.get(engine.loaded_directly.remote(), timeout=WAIT_S)
    ray.get(engine.load_through.remote(reload=True), timeout=WAIT_S)
    call(one, "train", 2)
    assert sync_and_prove(one, {"untied": engine}, 7).worker_versions == [7]
    assert not ray.get(engine.loaded_directly.remote(), timeout=WAIT_S)
    ray.get(engine.update_weight_version.remote(6), timeout=WAIT_S)
    sequences = probes()
    learner = call(one, "probe", sequences, 7)[0]
    stale = ray.get(engine.sync_probe.remote(sequences), timeout=WAIT_S)
    with pytest.raises(SyncProofFailed, match="untied holds weight version 6, expected 7"):
        prove_sync(
            sequences,
            learner,
            {"untied": stale},
            weight_version=7,
            tolerance=TOLERANCE,
            mean_tolerance=TOLERANCE,
            bytes_sent=0,
            seconds=0,
        )
    ray.kill(engine)


def test_without_mending_the_tied_head_stays_old(
    one: list[Any], engines: dict[str, Any], paths: dict[str, str]
) -> None:
    """vLLM's reload alone leaves the old head on CPU; the proof must see it, and mending must end it."""
    engine = engines["rollout-0"]
    call(one, "load", paths["tied"], 1)
    call(one, "connect", {"rollout-0": engine})
    call(one, "train", 9)  # to weights that no test before has sent
    ray.get(engine.load_through.remote(reload=True, mended=False), timeout=WAIT_S)
    with pytest.raises(SyncProofFailed, match="rollout-0 does not hold the learner's weights"):
        sync_and_prove(one, {"rollout-0": engine}, 1)
    ray.get(engine.load_through.remote(reload=True), timeout=WAIT_S)
    for version in (2, 3):
        call(one, "train", version)
        assert sync_and_prove(one, {"rollout-0": engine}, version).max_difference <= TOLERANCE
        assert not ray.get(engine.loaded_directly.remote(), timeout=WAIT_S)
    ray.get(engine.load_through.remote(reload=False), timeout=WAIT_S)
    call(one, "train", 4)
    assert sync_and_prove(one, {"rollout-0": engine}, 4).max_difference <= TOLERANCE
    assert ray.get(engine.loaded_directly.remote(), timeout=WAIT_S)


def test_a_refused_tensor_names_the_worker_and_the_next_sync_heals(
    one: list[Any], engines: dict[str, Any], paths: dict[str, str]
) -> None:
    call(one, "load", paths["tied"], 2)
    call(one, "connect", engines)
    call(one, "rename", "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.sideways.weight")
    began = time.monotonic()
    with pytest.raises(Exception, match=r"SyncError.*rollout-\d failed in phase update: .*sideways"):
        call(one, "send", 1)
    assert time.monotonic() - began < 30  # well below the bound of 60 s: nobody waited for it
    versions = ray.get([engine.get_weight_version.remote() for engine in engines.values()], timeout=WAIT_S)
    assert versions == [-1, -1]
    call(one, "connect", engines)
    assert sync_and_prove(one, engines, 2).worker_versions == [2, 2]


def test_a_worker_that_hangs_is_named_and_the_others_go_on(
    two: list[Any], engines: dict[str, Any], paths: dict[str, str]
) -> None:
    """Runs last: it loses an engine."""
    call(two, "load", paths["tied"], 3)
    bound_s = 20.0
    call(two, "connect", engines, bound_s)
    sync_and_prove(two, engines, 1)
    hanging = ray.get(engines["rollout-1"].pid.remote(), timeout=WAIT_S)
    os.kill(hanging, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(Exception, match=r"SyncTimeout.*rollout-1 did not finish phase start within 20 s"):
            call(two, "send", 2)
        assert time.monotonic() - began < bound_s + 40
    finally:
        os.kill(hanging, signal.SIGKILL)
    left = {"rollout-0": engines["rollout-0"]}
    call(two, "train", 3)
    call(two, "connect", left)
    assert sync_and_prove(two, left, 3).worker_versions == [3]
