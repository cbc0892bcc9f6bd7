"""The input and output of a loss. Importing this module does not import torch."""

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
    """One micro-batch, flattened: the N completion tokens of S whole samples, in sample order.

    N is 0 only if S is 0. Log-probabilities are in nats, at the sampling temperature.
    """

    logprobs: Tensor
    """[N] the current policy's, with gradient."""
    entropy: Tensor | None
    """[N] nats, of the current policy's next-token distribution, with gradient if there is an entropy bonus; None where
    nothing asks for it (`logging.entropy_every`, `algo.entropy_bonus`, `Algorithm.needs_entropy`)."""
    old_logprobs: Tensor
    """[N] the learner's log-probabilities before this batch's first update; no gradient."""
    rollout_logprobs: Tensor
    """[N] the rollout engine's; NaN for samples that have none."""
    reference_logprobs: Tensor
    """[N] the reference policy's; 0 if the algorithm needs none."""
    sample_of_token: Tensor
    """[N] int64 in [0, S), not decreasing."""
    term: list[Term]
    """[S]"""
    weight: Tensor
    """[S] TrainingSample.weight."""
    advantage: Tensor
    """[N] TrainingSample.token_advantages, or its sample's `advantage`."""
    unit: Tensor
    """[S] int64, TrainingSample.unit."""
    reference_sum: Tensor
    """[S] stored sum of the reference's log-probabilities; NaN if none is stored."""
    exact_logprobs: Tensor | None = None
    """[N] `old_logprobs` without dropout, which are compared with the engine's; None: they are the same."""
    teacher_logprobs: Tensor | None = None
    """[N, k] TrainingSample.teacher's; NaN for samples that have none; None if none of them has."""
    likely_logprobs: Tensor | None = None
    """[N, k] the current policy's at the ids of the teacher's k likeliest tokens, with gradient; None as above."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Loss and statistics of one micro-batch."""

    loss: Tensor
    """Scalar to minimise: the weighted sum over this micro-batch's tokens. The samples' weights hold the batch-wide
    normaliser, so the sums of all micro-batches and ranks add up to the batch's loss."""
    metrics: dict[str, tuple[Tensor, Tensor]]
    """name -> (sum, count), detached scalars; combine them with `merge_metrics` and `metric_means`."""


def merge_metrics(parts: Iterable[MetricSums]) -> MetricSums:
    """Combines micro-batches or ranks: adds sums and counts; a name that ends in `max` keeps the largest value."""
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
    """sum / count; the plain sum if the count is 0 (losses, whose weights are already normalised, and maxima)."""
    return {name: value / count if count else value for name, (value, count) in sums.items()}
