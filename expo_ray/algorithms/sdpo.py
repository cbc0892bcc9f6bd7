"""SDPO: a completion's teacher sees a correct completion of the same group (arXiv 2601.20802)."""

from expo_ray.algorithms.opsd import Opsd
from expo_ray.config.algorithms import POLICY_KEYS, TEACHER_KEYS
from expo_ray.messages import Group, IntArray
from expo_ray.prompts.templates import after_thought


class Sdpo(Opsd):
    """Self-distillation from the group's own successes (docs/algorithms/sdpo.md)."""

    label = "SDPO"
    uses = (POLICY_KEYS - {"dynamic_sampling", "refill_rounds"}) | TEACHER_KEYS | {"policy_coef"}

    def contexts(self, groups: list[Group]) -> list[list[IntArray | None]]:
        """The teacher of a completion sees the first correct one of its group but itself; without one there is none."""
        assert self.builder is not None, "begin() comes before the first step"
        shown = [[_shown(group, i) for i in range(len(group.rollout.completions))] for group in groups]
        told = [
            (group.rollout.prompt.problem, text)
            for group, of_group in zip(groups, shown, strict=True)
            for text in of_group
            if text is not None
        ]
        ids = iter(self.builder.told([problem for problem, _ in told], [text for _, text in told]))
        return [[None if text is None else next(ids) for text in of_group] for of_group in shown]


def _shown(group: Group, index: int) -> str | None:
    """What the first correct completion but the one at `index` says behind its thought."""
    pairs = zip(group.rollout.completions, group.verdicts, strict=True)
    texts = (after_thought(c.text) for i, (c, v) in enumerate(pairs) if i != index and v.outcome == "correct")
    return next((text for text in texts if text), None)
