"""GRPO: J = E[ mean_i w_i sum_t min(r A, clip(r) A) ] - kl_coef KL, and its common variants."""

from dataclasses import replace

import numpy as np

from expo_ray.algorithms.base import Algorithm, Inputs, Properties, Sample
from expo_ray.algorithms.losses import grpo_loss
from expo_ray.algorithms.rewards import Rewards, group_metrics, has_signal, shaped_advantages, total_rewards
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.algorithms import POLICY_KEYS
from expo_ray.config.schema import Config
from expo_ray.messages import Group, IntArray, RolloutRequest, TrainingBatch, TrainingSample


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


def sample_guided(
    groups: list[Group], guidance: dict[int, IntArray], samples: int, inputs: Inputs, config: Config, sample: Sample
) -> tuple[list[Group], dict[str, float]]:
    """Samples further completions of some groups' problems, after these prompts.

    Args:
        groups: a step's groups.
        guidance: index of a group -> ids of the prompt; one that leaves no room for a completion is left out.
        samples: completions of each.
        inputs: knows how much room there is.
        config: the run's configuration.
        sample: samples and verifies.

    Returns:
        The groups, those with `guided` too, and counts to log.
    """
    room = inputs.context - config.rollout.max_completion_tokens
    chosen = {i: ids for i, ids in guidance.items() if len(ids) <= room}
    asked = [RolloutRequest(replace(groups[i].rollout.prompt, free_ids=ids), samples, 0) for i, ids in chosen.items()]
    found = dict(zip(chosen, sample(asked), strict=True)) if asked else {}
    verdicts = [verdict.outcome for group in found.values() for verdict in group.verdicts]
    counts = {
        "guided/prompts": float(len(found)),
        "guided/too_long": float(len(guidance) - len(chosen)),
        "guided/sampled": float(len(verdicts)),
        "guided/correct": float(verdicts.count("correct")),
        "guided/left_out": float(sum(int(np.isnan(total_rewards(group, config)).sum()) for group in found.values())),
    }
    return [replace(group, guided=found.get(i)) for i, group in enumerate(groups)], counts


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
