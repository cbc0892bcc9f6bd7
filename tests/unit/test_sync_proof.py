"""The proof of a sync succeeds and fails when it should, with the right sentence."""

import numpy as np
import pytest

from expo_ray.sync.proof import Probe, SyncProofFailed, choose_probes, prove_sync

SEQUENCES = [[5, 6, 7], [1, 2, 3, 4]]


def probe(version: int = 3, bump: float = 0.0, at: tuple[int, int] = (1, 2)) -> Probe:
    logprobs = [np.array([-1.0, -2.0], np.float32), np.array([-0.5, -3.0, -4.0], np.float32)]
    logprobs[at[0]][at[1]] += bump
    return Probe(version, logprobs)


def prove(learner: Probe, workers: dict[str, Probe], tolerance: float = 1e-3, mean_tolerance: float = 1e-3):
    bounds = {"tolerance": tolerance, "mean_tolerance": mean_tolerance}
    return prove_sync(SEQUENCES, learner, workers, weight_version=3, bytes_sent=10, seconds=0.5, **bounds)


def test_agreement_is_recorded():
    proof = prove(probe(), {"a": probe(), "b": probe(bump=5e-4)})
    assert proof.worker_versions == [3, 3]
    assert proof.max_difference == pytest.approx(5e-4, rel=1e-2)
    assert proof.mean_difference == pytest.approx(1e-4, rel=1e-2)  # one of five tokens
    assert (proof.weight_version, proof.tolerance, proof.bytes_sent, proof.seconds) == (3, 1e-3, 10, 0.5)


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
