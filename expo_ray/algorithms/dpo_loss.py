"""The DPO loss over the pairs of a micro-batch (Rafailov et al., arXiv 2305.18290, equation 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.algorithms.segments import segment_sum
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens

if TYPE_CHECKING:
    from torch import Tensor


def dpo_loss(tokens: PolicyTokens, dpo_beta: float) -> LossOutput:
    """- sum over pairs of w logsigmoid(dpo_beta ((l_c - l_r) - (ref_c - ref_r))), sums over each completion's tokens.

    w is the chosen sample's weight. The reference's sums are the stored ones where there are any, else those of
    `reference_logprobs`. Raises ValueError where a unit is not one chosen and one rejected sample.
    """
    import torch
    from torch.nn.functional import logsigmoid

    samples = len(tokens.term)
    chosen, rejected = _members(tokens)
    policy = segment_sum(tokens.logprobs, tokens.sample_of_token, samples)
    scored = segment_sum(tokens.reference_logprobs, tokens.sample_of_token, samples)
    reference = torch.where(torch.isnan(tokens.reference_sum), scored, tokens.reference_sum)
    rise = policy - reference
    margin = dpo_beta * (rise[chosen] - rise[rejected])
    loss = -(tokens.weight[chosen] * logsigmoid(margin)).sum()
    count = loss.new_tensor(float(len(chosen)))
    detached = margin.detach()
    return LossOutput(
        loss,
        {
            "loss/dpo": (loss.detach(), loss.new_zeros(())),
            "loss/total": (loss.detach(), loss.new_zeros(())),
            "dpo/margin": (detached.sum(), count),
            "dpo/accuracy": ((detached > 0).sum(), count),
            "dpo/chosen_rise": (rise[chosen].detach().sum(), count),
            "dpo/rejected_rise": (rise[rejected].detach().sum(), count),
            "policy/entropy": (tokens.entropy.detach().sum(), loss.new_tensor(float(tokens.entropy.numel()))),
        },
    )


def _members(tokens: PolicyTokens) -> tuple[Tensor, Tensor]:
    """Indices of the chosen and of the rejected samples, pair by pair."""
    by_unit: dict[int, dict[str, int]] = {}
    for index, (term, unit) in enumerate(zip(tokens.term, tokens.unit.tolist(), strict=True)):
        pair = by_unit.setdefault(unit, {})
        if term in pair:
            raise ValueError(f"unit {unit} has two {term} samples")
        pair[term] = index
    for unit, pair in by_unit.items():
        if set(pair) != {"chosen", "rejected"}:
            raise ValueError(f"unit {unit} is not one chosen and one rejected sample, but {sorted(pair)}")
    indices = tokens.sample_of_token.new_tensor([[pair["chosen"], pair["rejected"]] for pair in by_unit.values()])
    indices = indices.reshape(-1, 2)
    return indices[:, 0], indices[:, 1]
