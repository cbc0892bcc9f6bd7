"""DPO-GT: DPO with the expert's solution as chosen, the paper's baseline for ExP-DPO."""

from expo_ray.algorithms.base import Properties
from expo_ray.algorithms.exp_dpo import ExpDpo
from expo_ray.messages import Group


class DpoGt(ExpDpo):
    """ExP-DPO with gold solutions in place of explanations (docs/algorithms/dpo_gt.md)."""

    name = "dpo_gt"

    def explanations_ahead(self, step: int) -> int:
        return 0

    def chosen(
        self, groups: list[Group], step: int, properties: Properties | None
    ) -> tuple[list[list[tuple[list[int], str]]], dict[str, float]]:
        prompts = [group.rollout.prompt for group in groups]
        chosen = [[(p.gold_ids.tolist(), p.problem.solution or "")] if p.gold_ids is not None else [] for p in prompts]
        return chosen, {"gold/prompts_without": float(sum(not mine for mine in chosen))}
