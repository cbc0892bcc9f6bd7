"""The proof of a sync: learner and engines must assign the same log-probabilities to probe tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from expo_ray.messages import FloatArray, SyncProof
from expo_ray.sync import SyncProofFailed

NO_VERSION = -1
"""An engine's weight version before the first sync and during each sync."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One side's answer to the probe sequences."""

    version: int
    logprobs: list[FloatArray]
    """For each sequence of length T: [T - 1] nats, entry t the log-probability of token t + 1 given tokens
    0..t, at temperature 1."""


def choose_probes(candidates: Sequence[Sequence[int]], count: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """Picks `count` of the candidates at random and cuts each to its first `tokens` token ids.

    Returns fewer if fewer candidates have at least two tokens. Raises ValueError if none has.
    """
    usable = [index for index, ids in enumerate(candidates) if len(ids) >= 2]
    if not usable or count < 1 or tokens < 2:
        raise ValueError("a sync proof needs at least one probe of two tokens")
    picked = np.random.default_rng(seed).permutation(usable)[:count]
    return [[int(token) for token in candidates[index][:tokens]] for index in sorted(picked)]


def prove_sync(
    sequences: Sequence[Sequence[int]],
    learner: Probe,
    workers: Mapping[str, Probe],
    *,
    weight_version: int,
    tolerance: float,
    mean_tolerance: float,
    bytes_sent: int,
    seconds: float,
) -> SyncProof:
    """Compares every worker's version and log-probabilities (nats) with the learner's.

    Raises:
        SyncProofFailed: a version is not `weight_version`, a probe is missing, a difference is NaN, or an engine's
            largest difference is above `tolerance` or its mean difference above `mean_tolerance`. The message says
            what differs.
    """
    if not workers:
        raise SyncProofFailed("the sync cannot be proved: no rollout worker was probed")
    for name, probe in {"the learner": learner, **workers}.items():
        if probe.version != weight_version:
            raise SyncProofFailed(f"{name} holds weight version {probe.version}, expected {weight_version}")
        lengths = [len(logprobs) for logprobs in probe.logprobs]
        expected = [len(ids) - 1 for ids in sequences]
        if lengths != expected:
            raise SyncProofFailed(f"{name} answered probes of lengths {lengths}, expected {expected}")
    found = [
        _differences(name, sequences, learner, probe, tolerance, mean_tolerance) for name, probe in workers.items()
    ]
    return SyncProof(
        weight_version=weight_version,
        worker_versions=[probe.version for probe in workers.values()],
        max_difference=max(largest for largest, _ in found),
        mean_difference=max(mean for _, mean in found),
        tolerance=tolerance,
        mean_tolerance=mean_tolerance,
        bytes_sent=bytes_sent,
        seconds=seconds,
    )


def _differences(
    name: str,
    sequences: Sequence[Sequence[int]],
    learner: Probe,
    worker: Probe,
    tolerance: float,
    mean_tolerance: float,
) -> tuple[float, float]:
    """Computes the largest and mean absolute difference in nats; raises SyncProofFailed for one above its tolerance."""
    differences = [
        np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
        for ours, theirs in zip(learner.logprobs, worker.logprobs, strict=True)
    ]
    # A NaN compares false with everything, so it must count as the largest difference, not as none.
    ranked = [np.where(np.isnan(difference), np.inf, difference) for difference in differences]
    probe = int(np.argmax([difference.max() for difference in ranked]))
    position = int(np.argmax(ranked[probe]))
    largest = float(ranked[probe][position])
    mean = float(np.mean(np.concatenate(ranked)))
    if largest <= tolerance and mean <= mean_tolerance:
        return largest, mean
    raise SyncProofFailed(
        f"{name} does not hold the learner's weights at version {worker.version}: probe {probe}, position "
        f"{position + 1} (token {sequences[probe][position + 1]}) has log-probability "
        f"{worker.logprobs[probe][position]:.6f} in the engine and {learner.logprobs[probe][position]:.6f} in the "
        f"learner; largest difference {largest:.3g} (tolerance {tolerance:.3g}), mean {mean:.3g} "
        f"(tolerance {mean_tolerance:.3g}) nats"
    )
