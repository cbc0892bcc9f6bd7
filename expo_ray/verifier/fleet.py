"""All verifier actors, as the driver sees them."""

from collections.abc import Callable
from typing import Any

from expo_ray.messages import Completion, Group, Rollout, Verdict
from expo_ray.verifier.client import judge_all


class VerifierFleet:
    """Args:
    handles: actor name -> Ray handle.
    respawn: makes a new actor for an index; used when one died in the middle of a batch.
    wait_s: bound on one batch.
    """

    def __init__(self, handles: dict[str, Any], respawn: Callable[[int], Any], wait_s: float) -> None:
        self.handles, self.wait_s = handles, wait_s
        self._respawn = respawn

    def judge(self, rollouts: list[Rollout]) -> list[Group]:
        """Verdicts for every completion and explanation of the rollouts, one batch for all."""
        items = [_item(rollout, done) for rollout in rollouts for done in (*rollout.completions, *rollout.explanations)]
        verdicts = iter(judge_all(list(self.handles.values()), items, self._replace, self.wait_s))
        return [
            Group(rollout, _take(verdicts, rollout.completions), _take(verdicts, rollout.explanations))
            for rollout in rollouts
        ]

    def _replace(self, index: int) -> Any:
        name = list(self.handles)[index]
        self.handles[name] = self._respawn(index)
        return self.handles[name]


def _item(rollout: Rollout, completion: Completion) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    problem = rollout.prompt.problem
    return completion.text, problem.answers, problem.meta


def _take(verdicts: Any, completions: list[Completion]) -> list[Verdict]:
    return [next(verdicts) for _ in completions]
