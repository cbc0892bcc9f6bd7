"""The proof of a sync: learner and engines must assign the same log-probabilities to probe tokens, and hold the same
bits where those are compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expo_ray.messages import FloatArray, SyncProof
from expo_ray.sync import SyncProofFailed

if TYPE_CHECKING:
    from torch import Tensor

Digest = tuple[int, int]
"""Two sums over the bits of a tensor, modulo 2^64: plain, and weighted by position."""
AS_HEAD = " (as the head)"
"""Marks the digest of a tied head that has a copy of the embedding's weights."""
_CHUNK = 1 << 23
_LARGEST_WEIGHT = 65521
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


def digests_of(tensors: Iterable[tuple[str, "Tensor"]]) -> dict[str, Digest]:
    """Digests named tensors on their own devices; only the sums are copied.

    Integers add up without rounding, in any order. A single flipped bit changes the first sum, and values that changed
    places the second. -0 counts as 0.
    """
    import torch

    names, sums = [], []
    for name, tensor in tensors:
        names.append(name)
        sums.append(_sums(tensor.detach()))
    found = torch.stack(sums).tolist() if sums else []
    return {name: (first, second) for name, (first, second) in zip(names, found, strict=True)}


def _sums(tensor: "Tensor") -> "Tensor":
    """[2] int64 on the tensor's device."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    flat = tensor.reshape(-1)
    total = torch.zeros(2, dtype=torch.int64, device=flat.device)
    for start in range(0, len(flat), _CHUNK):
        part = (flat[start : start + _CHUNK] + 0).view(integers).to(torch.int64)
        weights = torch.arange(start, start + len(part), device=flat.device) % _LARGEST_WEIGHT + 1
        total += torch.stack([part.sum(), (part * weights).sum()])
    return total


def compare_digests(learner: Mapping[str, Digest], workers: Mapping[str, Mapping[str, Digest]], version: int) -> int:
    """Compares every engine's digests with the learner's, and returns how many tensors were compared.

    Raises:
        SyncProofFailed: a tensor of an engine has other bits, or one side has a tensor that the other lacks.
    """
    if not learner:
        raise SyncProofFailed("the sync cannot be proved: the learner has no tensor to compare")
    for worker, found in workers.items():
        lacking = sorted({*learner} ^ {name.removesuffix(AS_HEAD) for name in found})
        wrong = sorted(name for name, one in found.items() if one != learner.get(name.removesuffix(AS_HEAD)))
        if lacking or wrong:
            what = f"{len(wrong)} of {len(found)} tensors have other bits" if wrong else "the tensors are not the same"
            first = (wrong or lacking)[0]
            raise SyncProofFailed(
                f"{worker} does not hold the learner's weights at version {version}: {what}, first {first}"
            )
    return len(learner)


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
    tensors_compared: int = 0,
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
        tensors_compared=tensors_compared,
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
