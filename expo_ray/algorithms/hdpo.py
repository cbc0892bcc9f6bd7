"""HDPO: GRPO, and where a whole group is wrong, its correct explanations, distilled (arXiv 2603.23871)."""

from dataclasses import replace

from expo_ray.algorithms.base import Properties
from expo_ray.algorithms.explanations import (
    conditioned_samples,
    in_scope,
    review_explanations,
    review_metrics,
    sft_samples,
)
from expo_ray.algorithms.grpo import Grpo
from expo_ray.algorithms.opsd import Opsd
from expo_ray.config.algorithms import CHOICE_KEYS, POLICY_KEYS, TEACHER_KEYS, Explanations
from expo_ray.config.schema import Config
from expo_ray.messages import Group, IntArray, TrainingBatch, TrainingSample

OWN_KEYS = {"explanation_scope", "explanation_threshold", "sft_reduction", "kl_conditioned_coef"}


class Hdpo(Opsd):
    """Hybrid distillation (docs/algorithms/hdpo.md): the teacher's own samples, which the policy learns to expect."""

    label = "HDPO"
    explanations: Explanations = "required"
    teacher_samples = True
    uses = POLICY_KEYS | TEACHER_KEYS | (CHOICE_KEYS - {"explanation_answer"}) | OWN_KEYS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.reference_terms |= frozenset({"conditioned"} if config.algo.kl_conditioned_coef else ())

    def explanations_ahead(self, step: int) -> int:
        return 1 if self.config.algo.distill_coef or self.config.algo.kl_conditioned_coef else 0

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        base = Grpo.training_batch(self, groups, step)
        algo = self.config.algo
        if not self.explanations_ahead(step):
            return base
        reviews = [review_explanations(g, algo, properties[i] if properties else None) for i, g in enumerate(groups)]
        scoped = [in_scope(group, self.config) for group in groups]
        counts, samples = review_metrics(groups, reviews, algo), base.samples
        if algo.distill_coef:
            kept = [
                [
                    e.token_ids
                    for e, review in zip(group.rollout.explanations, of_group, strict=True)
                    if wanted and review.kept
                ]
                for group, of_group, wanted in zip(groups, reviews, scoped, strict=True)
            ]
            distilled, found = self._distilled(groups, kept)
            samples = samples + distilled
            counts |= found | {
                "explanations/prompts_in_scope": float(sum(scoped)),
                "explanations/prompts_without": float(sum(w and not ids for w, ids in zip(scoped, kept, strict=True))),
                "explanations/trained": float(len(distilled)),
            }
        if algo.kl_conditioned_coef:
            held = [
                [e.token_ids for e in group.rollout.explanations] if wanted else []
                for group, wanted in zip(groups, scoped, strict=True)
            ]
            samples = samples + conditioned_samples(groups, held)
        return TrainingBatch(step=step, samples=samples, metrics=base.metrics | counts)

    def _distilled(
        self, groups: list[Group], kept: list[list[IntArray]]
    ) -> tuple[list[TrainingSample], dict[str, float]]:
        """Samples of the kept explanations with the teacher's likeliest tokens, and counts of `taught`."""
        samples = [replace(sample, term="distill") for sample in sft_samples(groups, kept, 1.0, self.config.algo)]
        contexts: list[IntArray | None] = [
            group.rollout.prompt.conditioned_ids for group, ids in zip(groups, kept, strict=True) for _ in ids
        ]
        return self.taught(samples, contexts)
