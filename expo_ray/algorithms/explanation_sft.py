"""The ExP-SFT term alone: beta log pi(c~, a* | q), rationalisation as in STaR (arXiv 2203.14465)."""

from dataclasses import replace

from expo_ray.algorithms.base import Properties
from expo_ray.algorithms.exp_grpo import ExpGrpo
from expo_ray.messages import Group, TrainingBatch


class ExplanationSft(ExpGrpo):
    """ExP-GRPO without its policy term (docs/algorithms/explanation_sft.md)."""

    name = "explanation_sft"

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        batch = super().training_batch(groups, step, properties)
        return replace(batch, samples=[sample for sample in batch.samples if sample.term != "policy"])
