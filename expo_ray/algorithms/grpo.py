"""GRPO: J = E[ mean_i w_i sum_t min(r A, clip(r) A) ] - kl_coef KL, and its common variants."""

import numpy as np

from expo_ray.algorithms.base import Algorithm, Properties
from expo_ray.algorithms.losses import grpo_loss
from expo_ray.algorithms.rewards import group_metrics, has_signal, shaped_advantages
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.algorithms import POLICY_KEYS
from expo_ray.config.schema import Config
from expo_ray.messages import Group, TrainingBatch, TrainingSample


def policy_samples(groups: list[Group], config: Config) -> list[TrainingSample]:
    """Returns one sample per counted completion, weighted by `algo.loss_normalisation` over all of them:

    sequence_mean  1 / (completions * |o_i|)            (the paper's formula)
    token_mean     1 / tokens of all completions         (DAPO)
    dr_grpo        1 / (completions * max_completion_tokens)   (Dr. GRPO, arXiv 2503.20783)

    Groups without signal are left out if `algo.dynamic_sampling` is drop or refill, and else kept with advantage 0.
    """
    algo = config.algo
    chosen = []
    for group in groups:
        if algo.dynamic_sampling != "none" and not has_signal(group, config):
            continue
        advantages = shaped_advantages(group, config)
        chosen += [
            (group.rollout.prompt, completion, float(advantage))
            for completion, advantage in zip(group.rollout.completions, advantages, strict=True)
            if not np.isnan(advantage)
        ]
    lengths = [len(completion.token_ids) for _, completion, _ in chosen]
    weights = _weights(lengths, algo.loss_normalisation, config.rollout.max_completion_tokens)
    return [
        TrainingSample(
            prompt_ids=prompt.free_ids,
            completion_ids=completion.token_ids,
            term="policy",
            weight=weight,
            advantage=advantage,
            rollout_logprobs=completion.logprobs,
        )
        for (prompt, completion, advantage), weight in zip(chosen, weights, strict=True)
    ]


def _weights(lengths: list[int], normalisation: str, max_tokens: int) -> list[float]:
    if not lengths:  # every group was dropped
        return []
    if normalisation == "token_mean":
        return [1.0 / sum(lengths)] * len(lengths)
    if normalisation == "dr_grpo":
        return [1.0 / (len(lengths) * max_tokens)] * len(lengths)
    return [1.0 / (len(lengths) * length) for length in lengths]


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
