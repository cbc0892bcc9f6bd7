"""GRPO: J = E[ mean_i w_i sum_t min(r A, clip(r) A) ] - kl_coef KL, with the variants that practitioners use."""

from pathlib import Path
from typing import Any

from expo_ray.algorithms.base import Properties, Score
from expo_ray.algorithms.losses import grpo_loss
from expo_ray.algorithms.policy_batch import group_metrics, has_signal, policy_samples
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.schema import Config
from expo_ray.messages import Group, Term, TrainingBatch


class Grpo:
    """Group-relative policy optimisation (docs/algorithms/grpo.md)."""

    name = "grpo"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.reference_terms: frozenset[Term] = frozenset({"policy"} if config.algo.kl_coef else ())

    def rollout_ahead(self, step: int) -> int:
        return 1

    def explanations_ahead(self, step: int) -> int:
        return 0

    def needs_explanations(self, step: int) -> bool:
        return self.explanations_ahead(step) > 0

    def needs_properties(self, step: int) -> bool:
        return False

    def has_signal(self, group: Group) -> bool:
        return has_signal(group, self.config)

    def collect(self, groups: list[Group], step: int, properties: Properties | None = None) -> dict[str, float]:
        return {}

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        return TrainingBatch(
            step=step, samples=policy_samples(groups, self.config), metrics=group_metrics(groups, self.config)
        )

    def before_first_update(self, folder: Path, score: Score) -> None:
        """Nothing is needed."""

    def loss(self, tokens: PolicyTokens) -> LossOutput:
        return grpo_loss(tokens, self.config.algo)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is remembered."""
