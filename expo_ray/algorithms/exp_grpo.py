"""ExP-GRPO: GRPO + beta log pi(c~, a* | q), the paper's algorithm (arXiv 2507.02834)."""

from dataclasses import replace
from typing import Any

from expo_ray.algorithms.base import Properties, Refresh, beta_at
from expo_ray.algorithms.explanations import (
    Explanation,
    ExplanationStore,
    conditioned_samples,
    in_scope,
    keep_explanations,
    sft_samples,
)
from expo_ray.algorithms.grpo import Grpo
from expo_ray.config.algorithms import (
    EXPLANATION_KEYS,
    POLICY_KEYS,
    SFT_KEYS,
    Explanations,
    samples_completions,
)
from expo_ray.config.schema import Config
from expo_ray.messages import Group, TrainingBatch


class ExpGrpo(Grpo):
    """GRPO with the ExP-SFT term on the policy's own answer-conditioned explanations (docs/algorithms/exp_grpo.md)."""

    label = "ExP-GRPO"
    explanations: Explanations = "optional"
    uses = POLICY_KEYS | SFT_KEYS | EXPLANATION_KEYS

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.reference_terms |= frozenset({"conditioned"} if config.algo.kl_conditioned_coef else ())
        self.store = ExplanationStore()
        self.refresh = Refresh(config.algo.explanation_refresh_steps, config.trainer.steps)

    def explanations_ahead(self, step: int) -> int:
        algo = self.config.algo
        unused = algo.beta == 0 and algo.kl_conditioned_coef == 0
        if unused or self.config.rollout.explanations_per_prompt == 0:
            return 0
        return self.refresh.ahead(step)

    def skips_explanations(self, uid: str) -> bool:
        return self.refresh.period == 0 and uid in self.store

    def collect(self, groups: list[Group], step: int, properties: Properties | None = None) -> dict[str, float]:
        """Reviews the groups' explanations and stores them, replacing their problems' earlier ones."""
        found, counts = keep_explanations(groups, self.config.algo, step, properties, self.restate)
        self._remember(groups, found)
        return counts

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        base = super().training_batch(groups, step)
        self.refresh.trained(step)
        algo = self.config.algo
        beta = beta_at(step, self.config.trainer.steps, algo)
        if not beta and not algo.kl_conditioned_coef:
            return base
        samples, metrics = base.samples, base.metrics
        found, counts = keep_explanations(groups, algo, step, properties, self.restate)
        if self.refresh.period != 1:
            self._remember(groups, found)
        scoped = [in_scope(group, self.config) for group in groups]
        mine = [self._of(*each) for each in zip(groups, found, scoped, strict=True)]
        if beta:
            targets = [[e.target_ids for e in of_group if e.target_ids is not None] for of_group in mine]
            samples = samples + sft_samples(groups, targets, beta, algo)
            counts["explanations/prompts_in_scope"] = float(sum(scoped))
            counts["explanations/prompts_without"] = float(
                sum(wanted and not of_group for wanted, of_group in zip(scoped, targets, strict=True))
            )
            counts["explanations/trained"] = float(sum(map(len, targets)))
        if algo.kl_conditioned_coef:
            samples = samples + conditioned_samples(groups, [[e.token_ids for e in of_group] for of_group in mine])
        return TrainingBatch(step=step, samples=samples, beta=beta, metrics=metrics | counts)

    def state_dict(self) -> dict[str, Any]:
        return {"explanations": self.store.state_dict(), "sampled_to": self.refresh.sampled_to}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.store.load_state_dict(state["explanations"])
        self.refresh.resume(state.get("sampled_to", 0))

    def _of(self, group: Group, sampled: list[Explanation], scoped: bool) -> list[Explanation]:
        """Returns the group's explanations, sampled now or stored; none out of scope."""
        if not scoped:
            return []
        return sampled if group.rollout.explanations else self.store.get(group.rollout.prompt.problem.uid)

    def _remember(self, groups: list[Group], found: list[list[Explanation]]) -> None:
        for group, explanations in zip(groups, found, strict=True):
            if group.rollout.explanations:
                self.store.put(group.rollout.prompt.problem.uid, explanations)


class ExplanationSft(ExpGrpo):
    """ExP-GRPO without its policy term (docs/algorithms/explanation_sft.md)."""

    label = "ExP-SFT"
    needs_group = False
    explanations = "required"
    uses = SFT_KEYS | EXPLANATION_KEYS
    completions_for_scope_only = True

    def rollout_ahead(self, step: int) -> int:
        return 1 if samples_completions(self.config) else 0

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        batch = super().training_batch(groups, step, properties)
        return replace(batch, samples=[sample for sample in batch.samples if sample.term != "policy"])


class SftGtGrpo(Grpo):
    """GRPO with the SFT term of ExP-GRPO, on the expert's solution (docs/algorithms/sft_gt_grpo.md)."""

    label = "SFT-GT-CoT"
    needs_gold = True
    uses = POLICY_KEYS | SFT_KEYS

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
