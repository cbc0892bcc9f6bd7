"""The proof of a sync succeeds and fails when it should, with the right sentence."""

import numpy as np
import pytest
import torch

from expo_ray.sync import proof
from expo_ray.sync.proof import (
    AS_HEAD,
    Probe,
    SyncProofFailed,
    choose_probes,
    compare_digests,
    digests_of,
    prove_sync,
)

SEQUENCES = [[5, 6, 7], [1, 2, 3, 4]]


def probe(version: int = 3, bump: float = 0.0, at: tuple[int, int] = (1, 2)) -> Probe:
    logprobs = [np.array([-1.0, -2.0], np.float32), np.array([-0.5, -3.0, -4.0], np.float32)]
    logprobs[at[0]][at[1]] += bump
    return Probe(version, logprobs)


def prove(learner: Probe, workers: dict[str, Probe], tolerance: float = 1e-3, mean_tolerance: float = 1e-3):
    bounds = {"tolerance": tolerance, "mean_tolerance": mean_tolerance}
    return prove_sync(SEQUENCES, learner, workers, weight_version=3, bytes_sent=10, seconds=0.5, **bounds)


def test_agreement_is_recorded():
    found = prove(probe(), {"a": probe(), "b": probe(bump=5e-4)})
    assert found.worker_versions == [3, 3]
    assert found.max_difference == pytest.approx(5e-4, rel=1e-2)
    assert found.mean_difference == pytest.approx(1e-4, rel=1e-2)  # one of five tokens
    assert (found.weight_version, found.tolerance, found.bytes_sent, found.seconds) == (3, 1e-3, 10, 0.5)


def test_a_difference_names_worker_probe_position_and_both_sides():
    with pytest.raises(SyncProofFailed) as failure:
        prove(probe(), {"a": probe(), "b": probe(bump=0.25)})
    sentence = str(failure.value)
    assert sentence.startswith("b does not hold the learner's weights at version 3: probe 1, position 3 (token 4)")
    assert "-3.750000 in the engine and -4.000000 in the learner" in sentence
    assert "largest difference 0.25 (tolerance 0.001), mean 0.05 (tolerance 0.001) nats" in sentence
    assert "\n" not in sentence


def test_a_single_token_may_differ_if_only_the_mean_has_a_tight_bound():
    assert prove(probe(), {"a": probe(bump=0.2)}, tolerance=2.0, mean_tolerance=0.05).max_difference == pytest.approx(
        0.2
    )
    with pytest.raises(SyncProofFailed, match=r"a does not hold .* mean 0.06 \(tolerance 0.05\)"):
        prove(probe(), {"a": probe(bump=0.3)}, tolerance=2.0, mean_tolerance=0.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nan_fails(bad):
    with pytest.raises(SyncProofFailed, match="probe 0, position 1"):
        prove(probe(), {"a": probe(bump=bad, at=(0, 0))})


def test_versions_must_agree():
    with pytest.raises(SyncProofFailed, match="b holds weight version 2, expected 3"):
        prove(probe(), {"a": probe(), "b": probe(version=2)})
    with pytest.raises(SyncProofFailed, match="the learner holds weight version 4, expected 3"):
        prove(probe(version=4), {"a": probe()})


def test_every_probe_must_be_answered():
    short = Probe(3, probe().logprobs[:1])
    with pytest.raises(SyncProofFailed, match=r"a answered probes of lengths \[2\], expected \[2, 3\]"):
        prove(probe(), {"a": short})
    with pytest.raises(SyncProofFailed, match="no rollout worker"):
        prove(probe(), {})


def test_probes_are_chosen_from_usable_candidates():
    candidates = [[1], [], [2, 3, 4, 5], [6, 7], [8, 9, 10]]
    chosen = choose_probes(candidates, count=2, tokens=3, seed=1)
    assert len(chosen) == 2 and chosen == choose_probes(candidates, count=2, tokens=3, seed=1)
    assert all(ids in ([2, 3, 4], [6, 7], [8, 9, 10]) for ids in chosen)
    assert len(choose_probes(candidates, count=9, tokens=3)) == 3
    assert {tuple(choose_probes(candidates, 1, 3, seed)[0]) for seed in range(20)} == {(2, 3, 4), (6, 7), (8, 9, 10)}
    with pytest.raises(ValueError, match="two tokens"):
        choose_probes([[1]], count=1, tokens=4)


def sums_in_numpy(values: np.ndarray, integers: type) -> tuple[int, int]:
    """The digest from its definition: the bits as integers, summed plain and by position, as 64-bit integers."""
    bits = (values + 0).reshape(-1).view(integers).astype(object)
    weights = np.arange(len(bits), dtype=object) % 65521 + 1

    def wrapped(total: int) -> int:
        return (total + 2**63) % 2**64 - 2**63

    return wrapped(int(bits.sum())), wrapped(int((bits * weights).sum()))


def test_a_digest_is_two_sums_over_the_bits(monkeypatch):
    values = np.random.default_rng(0).normal(size=(300, 250)).astype(np.float32)  # more values than position weights
    values[0, 0] = np.nan
    tensor = torch.from_numpy(values.copy())
    want = sums_in_numpy(values, np.int32)
    assert digests_of([("w", tensor)]) == {"w": want}
    monkeypatch.setattr(proof, "_CHUNK", 1000)
    assert digests_of([("w", tensor), ("part", tensor[:7])]) == {"w": want, "part": sums_in_numpy(values[:7], np.int32)}
    half = torch.from_numpy(values).bfloat16()
    assert digests_of([("w", half)])["w"] == sums_in_numpy(half.view(torch.int16).numpy(), np.int16)
    assert digests_of([]) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bit_or_two_values_that_changed_places_change_a_digest(dtype):
    tensor = torch.randn(64, 33, generator=torch.Generator().manual_seed(1)).to(dtype)
    same = digests_of([("w", tensor)])
    integers = torch.int32 if dtype is torch.float32 else torch.int16
    for place in (0, 1000, tensor.numel() - 1):
        flipped = tensor.clone()
        flipped.view(-1).view(integers)[place] ^= 1
        assert digests_of([("w", flipped)])["w"][0] != same["w"][0]
    swapped = tensor.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert digests_of([("w", swapped)])["w"][0] == same["w"][0]
    assert digests_of([("w", swapped)]) != same
    zeros = torch.zeros(5, dtype=dtype)
    assert digests_of([("w", -zeros)]) == digests_of([("w", zeros)])


def test_other_bits_are_named():
    learner = {"a": (1, 1), "b": (2, 2), "c": (3, 3)}
    assert compare_digests(learner, {"x": {**learner}, "y": {**learner, f"a{AS_HEAD}": (1, 1)}}, 4) == 3
    with pytest.raises(SyncProofFailed, match=r"^y does .* version 4: 1 of 3 tensors have other bits, first b$"):
        compare_digests(learner, {"x": learner, "y": {**learner, "b": (2, 3)}}, 4)
    with pytest.raises(SyncProofFailed, match=r"1 of 4 tensors have other bits, first a \(as the head\)"):
        compare_digests(learner, {"y": {**learner, f"a{AS_HEAD}": (1, 0)}}, 4)
    with pytest.raises(SyncProofFailed, match="the tensors are not the same, first c"):
        compare_digests(learner, {"y": {"a": (1, 1), "b": (2, 2)}}, 4)
    with pytest.raises(SyncProofFailed, match="no tensor to compare"):
        compare_digests({}, {"y": {}}, 4)
