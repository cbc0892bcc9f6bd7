"""The loss of the GRPO family: policy term, KL terms, entropy bonus and ExP-SFT term, summed over tokens.

    loss = - sum_policy w (c_t J_t - kl_coef k_t + entropy_bonus H_t)  -  sum_sft w log pi
           + sum_conditioned w kl_conditioned_coef k_t

w is the sample's weight, which holds the normaliser of the whole batch (and beta, for the ExP-SFT term).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.algorithms.importance import importance_weights
from expo_ray.algorithms.kl import kl_estimate
from expo_ray.algorithms.policy_loss import surrogate
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.schema import AlgoConfig

if TYPE_CHECKING:
    from torch import Tensor

    from expo_ray.messages import Term

Metrics = dict[str, "tuple[Tensor, Tensor]"]


def grpo_loss(tokens: PolicyTokens, algo: AlgoConfig) -> LossOutput:
    """Loss of a micro-batch of policy, sft and conditioned samples (module docstring), in nats.

    Raises ValueError where a sample belongs to another term.
    """
    unknown = set(tokens.term) - {"policy", "sft", "conditioned"}
    if unknown:
        raise ValueError(f"the GRPO loss has no term for samples of {sorted(unknown)}")
    policy, metrics = _policy_terms(tokens, algo)
    sft, sft_metrics = _sft_term(tokens)
    conditioned, conditioned_metrics = _conditioned_term(tokens, algo)
    loss = policy + sft + conditioned
    metrics |= sft_metrics | conditioned_metrics
    metrics["loss/total"] = (loss.detach(), loss.new_zeros(()))
    return LossOutput(loss, metrics)


def _policy_terms(tokens: PolicyTokens, algo: AlgoConfig) -> tuple[Tensor, Metrics]:
    chosen = _tokens_of(tokens, "policy")
    sample = tokens.sample_of_token[chosen]
    logprobs, old = tokens.logprobs[chosen], tokens.old_logprobs[chosen]
    entropy, weight = tokens.entropy[chosen], tokens.weight[sample]
    factor, metrics = importance_weights(
        old,
        tokens.rollout_logprobs[chosen],
        sample,
        len(tokens.term),
        algo.importance_correction,
        algo.importance_cap,
    )
    result = surrogate(logprobs, old, tokens.advantage[sample], sample, len(tokens.term), algo)
    policy = -(weight * factor * result.objective).sum()
    loss = policy
    count = chosen.sum()
    nothing = policy.new_zeros(())
    metrics["loss/policy"] = (policy.detach(), nothing)
    metrics["policy/entropy"] = (entropy.detach().sum(), count)
    metrics["policy/clip_fraction"] = (result.clipped.sum(), count)
    metrics["policy/ratio_mean"] = (result.ratio.sum(), count)
    if algo.entropy_bonus:
        loss = loss - algo.entropy_bonus * (weight * entropy).sum()
    if algo.kl_coef:
        estimate = kl_estimate(logprobs, tokens.reference_logprobs[chosen], algo.kl_estimator)
        kl = algo.kl_coef * (weight * estimate).sum()
        loss = loss + kl
        metrics["loss/kl"] = (kl.detach(), nothing)
        metrics["kl/reference"] = (estimate.detach().sum(), count)
    return loss, metrics


def _sft_term(tokens: PolicyTokens) -> tuple[Tensor, Metrics]:
    chosen = _tokens_of(tokens, "sft")
    logprobs = tokens.logprobs[chosen]
    loss = -(tokens.weight[tokens.sample_of_token[chosen]] * logprobs).sum()
    return loss, {
        "loss/sft": (loss.detach(), loss.new_zeros(())),
        "sft/logprob": (logprobs.detach().sum(), chosen.sum()),
    }


def _conditioned_term(tokens: PolicyTokens, algo: AlgoConfig) -> tuple[Tensor, Metrics]:
    chosen = _tokens_of(tokens, "conditioned")
    logprobs = tokens.logprobs[chosen]
    if not algo.kl_conditioned_coef:
        return logprobs.sum() * 0.0, {}
    estimate = kl_estimate(logprobs, tokens.reference_logprobs[chosen], algo.kl_estimator)
    weight = tokens.weight[tokens.sample_of_token[chosen]]
    loss = algo.kl_conditioned_coef * (weight * estimate).sum()
    return loss, {
        "loss/kl_conditioned": (loss.detach(), loss.new_zeros(())),
        "kl/conditioned": (estimate.detach().sum(), chosen.sum()),
    }


def _tokens_of(tokens: PolicyTokens, term: Term) -> Tensor:
    """[N] bool: the tokens whose sample belongs to `term`."""
    import torch

    members = torch.tensor([name == term for name in tokens.term], device=tokens.logprobs.device, dtype=torch.bool)
    return members[tokens.sample_of_token]
