"""The policy term's per-token objective: clipped ratio (PPO, decoupled, dual), CISPO and GSPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expo_ray.algorithms.segments import segment_mean
from expo_ray.config.schema import AlgoConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The objective of each policy token, to be maximised."""

    objective: Tensor
    """[N] with gradient."""
    ratio: Tensor
    """[N] importance ratio to the old policy (GSPO: of the token's sequence), without gradient."""
    clipped: Tensor
    """[N] bool: the clip decides this token's gradient."""


def surrogate(
    logprobs: Tensor, old: Tensor, advantage: Tensor, sample_of_token: Tensor, samples: int, algo: AlgoConfig
) -> Surrogate:
    """Objective for tokens [N] with per-token advantage [N].

    clip   min(r A, clip(r, 1 - clip_low, 1 + clip_high) A); with dual_clip c > 1, at least c A where A < 0
           (arXiv 1912.09729). r_t = pi(o_t) / pi_old(o_t).
    gspo   the same with the sequence's ratio s_i = exp(mean_t log r_t) in place of r_t (2507.18071).
    cispo  sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi (2506.13585; clip_low = 1 leaves no lower bound).
    Raises ValueError for another `policy_loss`.
    """
    import torch

    log_ratio = logprobs - old
    if algo.policy_loss == "cispo":
        ratio = log_ratio.detach().exp()
        bounded = ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high)
        return Surrogate(bounded * advantage * logprobs, ratio, bounded != ratio)
    if algo.policy_loss == "gspo":
        log_ratio = segment_mean(log_ratio, sample_of_token, samples)[sample_of_token]
    elif algo.policy_loss != "clip":
        raise ValueError(f"algo.policy_loss={algo.policy_loss}: expected clip, cispo or gspo")
    ratio = log_ratio.exp()
    plain = ratio * advantage
    bounded = ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high) * advantage
    objective = torch.minimum(plain, bounded)
    clipped = bounded < plain
    if algo.dual_clip > 0:
        floor = algo.dual_clip * advantage
        below = (advantage < 0) & (objective < floor)
        objective = torch.where(below, floor, objective)
        clipped = clipped | below
    return Surrogate(objective, ratio.detach(), clipped)
