"""Correction of the policy term for what differs between the trainer and the engine that sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.algorithms.segments import segment_mean

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, "tuple[Tensor, Tensor]"]


def importance_weights(
    old: Tensor, rollout: Tensor, sample_of_token: Tensor, samples: int, mode: str, cap: float
) -> tuple[Tensor, Metrics]:
    """[N] factor on each token's policy term, without gradient, and the mismatch statistics.

    c_t = exp(old_t - rollout_t), trainer over engine, and
      none           1
      truncate       min(c_t, cap)                            (truncated importance sampling)
      mask_token     c_t where 1/cap <= c_t <= cap, else 0     (IcePop)
      mask_sequence  min(c_t, cap), and 0 for the whole completion where exp(mean_t(old - rollout)) is
                     outside [1/cap, cap]
    Tokens with NaN in `rollout` get 1 and are not counted. Masked tokens stay in the normaliser.
    """
    import torch

    known = ~torch.isnan(rollout)
    difference = torch.where(known, old - rollout, torch.zeros_like(old)).detach()
    ratio = difference.exp()
    ones = torch.ones_like(ratio)
    truncated, masked = torch.zeros_like(known), torch.zeros_like(known)
    if mode == "none":
        factor = ones
    elif mode == "truncate":
        truncated = ratio > cap
        factor = ratio.clamp(max=cap)
    elif mode == "mask_token":
        masked = (ratio > cap) | (ratio < 1 / cap)
        factor = torch.where(masked, torch.zeros_like(ratio), ratio)
    elif mode == "mask_sequence":
        sequence_ratio = segment_mean(difference, sample_of_token, samples).exp()[sample_of_token]
        masked = (sequence_ratio > cap) | (sequence_ratio < 1 / cap)
        truncated = (ratio > cap) & ~masked
        factor = torch.where(masked, torch.zeros_like(ratio), ratio.clamp(max=cap))
    else:
        raise ValueError(f"algo.importance_correction={mode}: expected none, truncate, mask_token or mask_sequence")
    count = known.sum()
    largest = difference.abs().max() if difference.numel() else difference.new_zeros(())
    metrics: Metrics = {
        "mismatch/mean_abs": (difference.abs().sum(), count),
        "mismatch/max": (largest, torch.zeros_like(count)),
        "mismatch/ratio_mean": ((ratio * known).sum(), count),
        "mismatch/truncated": ((truncated & known).sum(), count),
        "mismatch/masked": ((masked & known).sum(), count),
    }
    return torch.where(known, factor, ones), metrics
