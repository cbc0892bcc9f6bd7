"""All verifier actors, as the driver sees them."""

from collections.abc import Callable
from typing import Any

from expo_ray.driver.waits import Waiter
from expo_ray.messages import Completion, Group, Rollout, Verdict
from expo_ray.verifier.client import Judging


class VerifierFleet:
    """Args:
    handles: actor name -> Ray handle.
    replace: ends an actor (name, reason), starts another in its place and returns its handle.
    waiter: names the actors in errors.
    wait_s: bound on one block of responses.
    """

    def __init__(
        self, handles: dict[str, Any], replace: Callable[[str, str], Any], waiter: Waiter, wait_s: float
    ) -> None:
        self.handles, self.replace, self.waiter, self.wait_s = handles, replace, waiter, wait_s

    def judge(self, rollouts: list[Rollout]) -> list[Group]:
        """Verdicts for every completion and explanation of the rollouts, one batch for all."""
        items = [_item(rollout, done) for rollout in rollouts for done in rollout.sampled]
        verdicts = iter(Judging(self.handles, items, self.replace, self.waiter, self.wait_s).run())
        return [
            Group(rollout, _take(verdicts, rollout.completions), _take(verdicts, rollout.explanations))
            for rollout in rollouts
        ]


def _item(rollout: Rollout, completion: Completion) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    problem = rollout.prompt.problem
    return completion.text, problem.answers, problem.meta


def _take(verdicts: Any, completions: list[Completion]) -> list[Verdict]:
    return [next(verdicts) for _ in completions]
