"""SFT-GT-GRPO: GRPO + beta log pi(gold solution | q), the paper's "GRPO SFT-GT-CoT" baseline."""

from expo_ray.algorithms.base import Properties
from expo_ray.algorithms.explanations import in_scope, sft_samples
from expo_ray.algorithms.grpo import Grpo
from expo_ray.algorithms.schedule import beta_at
from expo_ray.messages import Group, TrainingBatch


class SftGtGrpo(Grpo):
    """GRPO with the SFT term of ExP-GRPO, on the expert's solution (docs/algorithms/sft_gt_grpo.md)."""

    name = "sft_gt_grpo"

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        base = super().training_batch(groups, step)
        beta = beta_at(step, self.config.trainer.steps, self.config.algo)
        if not beta:
            return base
        scoped = [in_scope(group, self.config) for group in groups]
        gold = [group.rollout.prompt.gold_ids for group in groups]
        targets = [[ids] if wanted and ids is not None else [] for wanted, ids in zip(scoped, gold, strict=True)]
        counts = {
            "gold/prompts_in_scope": float(sum(scoped)),
            "gold/prompts_without": float(sum(w and not t for w, t in zip(scoped, targets, strict=True))),
            "gold/trained": float(sum(map(len, targets))),
        }
        return TrainingBatch(
            step=step,
            samples=base.samples + sft_samples(groups, targets, beta, self.config.algo),
            beta=beta,
            metrics=base.metrics | counts,
        )
