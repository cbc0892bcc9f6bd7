"""ExP-DPO: DPO that prefers a self-explanation over the policy's own wrong completion (arXiv 2507.02834)."""

from pathlib import Path
from typing import Any

import numpy as np

from expo_ray.algorithms.base import Algorithm, Inputs, Properties, Refresh, Score
from expo_ray.algorithms.explanations import Restate, in_scope, keep_explanations
from expo_ray.algorithms.losses import dpo_loss
from expo_ray.algorithms.pairs import EXPLANATION, GOLD, MadeWith, Pair, PairStore, make_pairs, pair_samples, use_again
from expo_ray.algorithms.rewards import group_metrics
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.algorithms import ANY_KEYS, CHOICE_KEYS, DPO_KEYS, Explanations
from expo_ray.config.keys import value_of
from expo_ray.config.schema import Config
from expo_ray.messages import Group, Term, TrainingBatch

SAMPLED_WITH = ("model.path", "rollout.temperature", "rollout.top_p", "rollout.top_k")
CHOSEN_WITH = CHOICE_KEYS - ANY_KEYS | {"explanation_scope", "explanation_threshold"}
"""Settings that a stored pair says it was made with. With other ones among the latter it is not used again."""
SCORED_AT_ONCE = 512
"""Completions of one call of the learners, which `trainer.wait_s` bounds: a data set has thousands of pairs."""


class ExpDpo(Algorithm):
    """DPO on explanations, with pairs made once, at each step, or every k steps (docs/algorithms/exp_dpo.md)."""

    label = "ExP-DPO"
    explanations: Explanations = "required"
    uses = DPO_KEYS | CHOICE_KEYS
    reference_terms = frozenset[Term]({"chosen", "rejected"})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        algo = config.algo
        period = {"online": 1, "iterative": algo.dpo_refresh_steps, "offline": 0}[algo.dpo_refresh]
        self.refresh = Refresh(period, config.trainer.steps)
        self.pairs = PairStore()
        self.reuses_pairs = algo.dpo_refresh == "offline" and algo.dpo_pairs_path is not None
        self.stores_reference = self.refresh.period == 0
        self._made_with: MadeWith | None = None
        self._folder: Path | None = None

    def begin(self, inputs: Inputs) -> list[str]:
        keys = [*SAMPLED_WITH, *(f"algo.{name}" for name in sorted(CHOSEN_WITH & (self.uses or CHOSEN_WITH)))]
        self._made_with = MadeWith(
            model=inputs.model,
            chosen=GOLD if self.needs_gold else EXPLANATION,
            stop_ids=list(inputs.stop_ids),
            settings={key: value_of(self.config, key) for key in keys},
        )
        if not self.reuses_pairs:
            return []
        return use_again(self.pairs, Path(str(self.config.algo.dpo_pairs_path)), inputs, self._made_with)

    def attach(self, folder: Path, score: Score, restate: Restate) -> None:
        super().attach(folder, score, restate)
        self._folder = folder

    def rollout_ahead(self, step: int) -> int:
        return 0 if self.reuses_pairs else self.refresh.ahead(step)

    def explanations_ahead(self, step: int) -> int:
        return self.rollout_ahead(step)

    def skips_completions(self, uid: str) -> bool:
        return self.refresh.period == 0 and uid in self.pairs

    def skips_explanations(self, uid: str) -> bool:
        return self.skips_completions(uid)

    def collect(self, groups: list[Group], step: int, properties: Properties | None = None) -> dict[str, float]:
        made, counts = self._pairs_of_sampled(groups, step, properties)
        self._remember(groups, made)
        return counts

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        made, counts = self._pairs_of_sampled(groups, step, properties)
        self.refresh.trained(step)
        if self.refresh.period != 1:
            self._remember(groups, made)
        # A report, which repeats what was trained on, has no folder and no learners.
        if step == 0 and self.refresh.period == 0 and len(self.pairs) and self._folder is not None:
            counts["pairs/scored"] = float(self._score_and_store())
        pairs: list[Pair] = []
        without = 0
        for group, own in zip(groups, made, strict=True):
            mine = own if self.refresh.period == 1 else self.pairs.get(group.rollout.prompt.problem.uid)
            pairs += mine
            without += not mine
        metrics = group_metrics([group for group in groups if group.rollout.completions], self.config) | counts
        metrics |= {"pairs/trained": float(len(pairs)), "pairs/prompts_without": float(without)}
        return TrainingBatch(step=step, samples=pair_samples(pairs), metrics=metrics)

    def _score_and_store(self) -> int:
        """Computes the reference sums that pairs lack, and writes pairs.jsonl into the run folder for inspection and
        for later runs (`algo.dpo_pairs_path`). Returns the number of pairs scored.

        Before the first update the policy is still the reference, so its log-probabilities are the reference's.
        """
        assert self._folder and self._score and self._made_with, "begin() and attach() come before the first step"
        temperature = self.config.rollout.temperature
        sequences = [(np.array(q, np.int32), np.array(c, np.int32)) for q, c in self.pairs.unscored()]
        parts = [sequences[first : first + SCORED_AT_ONCE] for first in range(0, len(sequences), SCORED_AT_ONCE)]
        scores = [values for part in parts for values in self._score(part, temperature)]
        sums = [float(values.sum(dtype=np.float64)) for values in scores]
        self.pairs.set_reference(sums, self._made_with.model, temperature)
        self.pairs.write(self._folder / "pairs.jsonl")
        return len(sequences) // 2

    def loss(self, tokens: PolicyTokens) -> LossOutput:
        return dpo_loss(tokens, self.config.algo.dpo_beta)

    def state_dict(self) -> dict[str, Any]:
        return {"pairs": self.pairs.state_dict(), "sampled_to": self.refresh.sampled_to}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pairs.load_state_dict(state["pairs"])
        if self._made_with is not None:
            self.pairs.keep_reference_of(self._made_with.model, self.config.rollout.temperature)
        self.refresh.resume(state.get("sampled_to", 0))

    def chosen(
        self, groups: list[Group], step: int, properties: Properties | None
    ) -> tuple[list[list[tuple[list[int], str]]], dict[str, float]]:
        """Returns the preferred completions (ids, text) of each group, and counts to log."""
        found, counts = keep_explanations(groups, self.config.algo, step, properties, self.restate)
        return [[(ids.tolist(), e.text) for e in of if (ids := e.target_ids) is not None] for of in found], counts

    def _pairs_of_sampled(
        self, groups: list[Group], step: int, properties: Properties | None
    ) -> tuple[list[list[Pair]], dict[str, float]]:
        chosen, counts = self.chosen(groups, step, properties)
        made = [
            make_pairs(group, mine, step, self._made_with) if in_scope(group, self.config) else []
            for group, mine in zip(groups, chosen, strict=True)
        ]
        return made, counts | {"pairs/made": float(sum(map(len, made)))}

    def _remember(self, groups: list[Group], made: list[list[Pair]]) -> None:
        for group, pairs in zip(groups, made, strict=True):
            if group.rollout.completions:
                self.pairs.put(group.rollout.prompt.problem.uid, pairs)


class DpoGt(ExpDpo):
    """ExP-DPO with gold solutions in place of explanations (docs/algorithms/dpo_gt.md)."""

    label = "DPO-GT"
    explanations = "none"
    needs_gold = True
    uses = DPO_KEYS

    def explanations_ahead(self, step: int) -> int:
        return 0

    def chosen(
        self, groups: list[Group], step: int, properties: Properties | None
    ) -> tuple[list[list[tuple[list[int], str]]], dict[str, float]]:
        prompts = [group.rollout.prompt for group in groups]
        chosen = [[(p.gold_ids.tolist(), p.problem.solution or "")] if p.gold_ids is not None else [] for p in prompts]
        return chosen, {"gold/prompts_without": float(sum(not mine for mine in chosen))}
