"""LUFFY: the expert's solution as a member of the group, with a shaped off-policy ratio (arXiv 2504.14945)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expo_ray.algorithms.base import Inputs, Properties
from expo_ray.algorithms.grpo import Grpo, group_samples, weighted
from expo_ray.algorithms.losses import Metrics, grpo_loss, plus, tokens_of
from expo_ray.algorithms.rewards import (
    Rewards,
    group_advantages,
    group_metrics,
    group_rewards,
    rewards_differ,
    total_rewards,
)
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.algorithms import POLICY_KEYS
from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config
from expo_ray.messages import Group, TrainingBatch, TrainingSample
from expo_ray.rewards.functions import VERIFIER, weights_of

if TYPE_CHECKING:
    from torch import Tensor


def mixed_advantages(group: Group, config: Config) -> tuple[Rewards, float | None]:
    """Advantages over the completions and the expert's solution together.

    Returns:
        [G] those of the completions, NaN for one that is left out; the solution's, None if the problem has none. The
        solution has a right answer's reward. Exactly 0 where no reward differs.
    """
    right = config.verifier.reward_correct * weights_of(config.reward).get(VERIFIER, 0.0)
    trace = [] if group.rollout.prompt.gold_ids is None else [right]
    rewards = np.append(total_rewards(group, config), trace)
    if rewards_differ(rewards):
        rewards = np.append(group_rewards(group, config), trace)  # after overlong shaping, as in GRPO
    found = group_advantages(rewards, config.algo.advantage)
    count = len(group.rollout.completions)
    return found[:count], float(found[count]) if trace else None


def expert_loss(tokens: PolicyTokens, shaping: float) -> tuple[Tensor, Metrics]:
    """- sum_t w A f(pi(tau_t)), f(p) = p / (p + shaping), over the tokens of the expert's solutions; no clip.

    The off-policy ratio is pi / pi_phi with the expert's probability pi_phi set to 1, and f shapes it: its slope
    shaping / (p + shaping)^2 is largest where the policy finds the expert's token unlikely.
    """
    chosen = tokens_of(tokens, "expert")
    sample = tokens.sample_of_token[chosen]
    probability = tokens.logprobs[chosen].exp()
    ratio = probability / (probability + shaping)
    loss = -(tokens.weight[sample] * tokens.advantage[chosen] * ratio).sum()
    return loss, {"expert/probability": (probability.detach().sum(), chosen.sum())}


class Luffy(Grpo):
    """GRPO whose groups hold the expert's solution (docs/algorithms/luffy.md)."""

    label = "LUFFY"
    needs_gold = True
    gold_in_group = True
    uses = POLICY_KEYS | {"expert_shaping"}

    def begin(self, inputs: Inputs) -> list[str]:
        others = [name for name, weight in weights_of(self.config.reward).items() if weight and name != VERIFIER]
        if others:
            raise ConfigError(
                f"reward.functions={others} give the expert's solution no reward, which algo={self.config.algo.name} "
                "compares with the completions': use reward.functions=[verifier], or weights of 0 for the others"
            )
        return super().begin(inputs)

    def has_signal(self, group: Group) -> bool:
        advantages, trace = mixed_advantages(group, self.config)
        return bool(np.nan_to_num(advantages).any() or trace)

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        sampled = [group for group in groups if group.rollout.completions]
        kept = [g for g in sampled if self.config.algo.dynamic_sampling == "none" or self.has_signal(g)]
        samples: list[TrainingSample] = []
        for group in kept:
            advantages, trace = mixed_advantages(group, self.config)
            samples += group_samples(group, advantages)
            prompt = group.rollout.prompt
            if trace is not None and prompt.gold_ids is not None:
                samples.append(TrainingSample(prompt.free_ids, prompt.gold_ids, "expert", 1.0, advantage=trace))
        metrics = group_metrics(sampled, self.config) | {
            "groups/dropped": float(len(sampled) - len(kept)),
            "gold/trained": float(sum(s.term == "expert" and s.advantage != 0 for s in samples)),
            "gold/prompts_without": float(sum(group.rollout.prompt.gold_ids is None for group in sampled)),
        }
        return TrainingBatch(step=step, samples=weighted(samples, self.config), metrics=metrics)

    def loss(self, tokens: PolicyTokens) -> LossOutput:
        output = grpo_loss(tokens, self.config.algo, own=frozenset({"expert"}))
        return plus(output, "expert", *expert_loss(tokens, self.config.algo.expert_shaping))
