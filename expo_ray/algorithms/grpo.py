"""GRPO: J = E[ mean_i w_i sum_t min(r A, clip(r) A) ] - kl_coef KL, and its common variants."""

from dataclasses import replace

import numpy as np

from expo_ray.algorithms.base import Algorithm, Properties
from expo_ray.algorithms.losses import grpo_loss
from expo_ray.algorithms.rewards import Rewards, group_metrics, has_signal, shaped_advantages
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.algorithms import POLICY_KEYS
from expo_ray.config.schema import Config
from expo_ray.messages import Group, TrainingBatch, TrainingSample


def policy_samples(groups: list[Group], config: Config) -> list[TrainingSample]:
    """Returns one sample per counted completion, `weighted` over all of them.

    Groups without signal are left out if `algo.dynamic_sampling` is drop or refill, and else kept with advantage 0.
    """
    kept = [g for g in groups if config.algo.dynamic_sampling == "none" or has_signal(g, config)]
    return weighted([s for g in kept for s in group_samples(g, shaped_advantages(g, config))], config)


def group_samples(group: Group, advantages: Rewards) -> list[TrainingSample]:
    """Returns a sample for each completion with its advantage, not yet weighted; NaN leaves a completion out."""
    return [
        TrainingSample(
            prompt_ids=group.rollout.prompt.free_ids,
            completion_ids=completion.token_ids,
            term="policy",
            weight=1.0,
            advantage=float(advantage),
            rollout_logprobs=completion.logprobs,
        )
        for completion, advantage in zip(group.rollout.completions, advantages, strict=True)
        if not np.isnan(advantage)
    ]


def weighted(samples: list[TrainingSample], config: Config) -> list[TrainingSample]:
    """Multiplies the samples' weights by `algo.loss_normalisation` over all of them:

    sequence_mean  1 / (samples * |o_i|)            (the paper's formula)
    token_mean     1 / tokens of all samples         (DAPO)
    dr_grpo        1 / (samples * max_completion_tokens)   (Dr. GRPO, arXiv 2503.20783)
    """
    count, normalisation = len(samples), config.algo.loss_normalisation
    lengths = [len(sample.completion_ids) for sample in samples]
    if normalisation == "token_mean":
        divisors = [sum(lengths)] * count
    elif normalisation == "dr_grpo":
        divisors = [count * config.rollout.max_completion_tokens] * count
    else:
        divisors = [count * length for length in lengths]
    return [replace(s, weight=s.weight / divisor) for s, divisor in zip(samples, divisors, strict=True)]


class Grpo(Algorithm):
    """Group-relative policy optimisation (docs/algorithms/grpo.md)."""

    label = "GRPO"
    needs_group = True
    uses = POLICY_KEYS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.reference_terms = frozenset({"policy"} if config.algo.kl_coef else ())

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        sampled = [group for group in groups if group.rollout.completions]
        return TrainingBatch(
            step=step, samples=policy_samples(sampled, self.config), metrics=group_metrics(sampled, self.config)
        )

    def loss(self, tokens: PolicyTokens) -> LossOutput:
        return grpo_loss(tokens, self.config.algo)
