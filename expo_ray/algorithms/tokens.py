"""What the learner hands to a loss, and what the loss hands back. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expo_ray.messages import Term

if TYPE_CHECKING:
    from torch import Tensor

MetricSums = dict[str, tuple[float, float]]
"""name -> (sum, count), as LossOutput.metrics with the tensors turned into floats."""


@dataclass(frozen=True, slots=True)
class PolicyTokens:
    """One micro-batch, flat: the N completion tokens of S samples, in sample order, no sample cut in two.

    N may be 0 only when S is 0. Log-probabilities are in nats, at the temperature of sampling.
    """

    logprobs: Tensor
    """[N] current policy, with gradient."""
    entropy: Tensor
    """[N] nats, of the current policy's next-token distribution, with gradient."""
    old_logprobs: Tensor
    """[N] the trainer's log-probabilities before this batch's first update; no gradient."""
    rollout_logprobs: Tensor
    """[N] the engine's; NaN where the sample has none."""
    reference_logprobs: Tensor
    """[N] the reference policy's; zeros where the algorithm needs none."""
    sample_of_token: Tensor
    """[N] int64 in [0, S), not decreasing."""
    term: list[Term]
    """[S]"""
    weight: Tensor
    """[S] TrainingSample.weight."""
    advantage: Tensor
    """[S]"""
    unit: Tensor
    """[S] int64, TrainingSample.unit."""
    reference_sum: Tensor
    """[S] stored sum of the reference's log-probabilities; NaN where none is stored."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Loss and statistics of one micro-batch."""

    loss: Tensor
    """Scalar to minimise: the weighted sum over this micro-batch's tokens. The samples' weights hold the
    batch-wide normaliser, so these sums add up over micro-batches and ranks to the batch's loss."""
    metrics: dict[str, tuple[Tensor, Tensor]]
    """name -> (sum, count), detached scalars; combine them with `merge_metrics` and `metric_means`."""


def merge_metrics(parts: Iterable[MetricSums]) -> MetricSums:
    """Combines micro-batches or ranks: sums and counts are added; names that end in `max` keep the largest."""
    merged: MetricSums = {}
    for part in parts:
        for name, (value, count) in part.items():
            if name not in merged:
                merged[name] = (value, count)
            elif name.endswith("max"):
                merged[name] = (max(merged[name][0], value), 0.0)
            else:
                merged[name] = (merged[name][0] + value, merged[name][1] + count)
    return merged


def metric_means(sums: MetricSums) -> dict[str, float]:
    """sum / count; the plain sum where the count is 0 (losses, whose weights are normalised already, and maxima)."""
    return {name: value / count if count else value for name, (value, count) in sums.items()}
