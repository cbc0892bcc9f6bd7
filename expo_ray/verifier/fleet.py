"""All verifier actors, as the driver sees them."""

from typing import Any, ClassVar

from expo_ray.messages import Completion, Group, Rollout, Verdict
from expo_ray.runtime.dispatch import Fleet
from expo_ray.verifier.pool import Item

MAX_BLOCK = 256
"""Largest block in items. When an actor dies, its whole block is verified again."""
BLOCKS_PER_ACTOR = 4
"""A small batch is cut into this many blocks for each actor, so that none idles while another has a slow block."""


class VerifierFleet(Fleet):
    """Survives lost actors; each response is verified exactly once. `wait_s` bounds one block of responses."""

    kind: ClassVar[str] = "verifier"

    def admit(self) -> None:
        """A verifier has no state, so a replacement serves as soon as it has started."""
        self.serve(self.workers | self.started())

    def verify(self, rollouts: list[Rollout]) -> list[Group]:
        """Verifies every completion and explanation of the rollouts, in one batch."""
        verdicts = iter(self.verdicts([_item(rollout, done) for rollout in rollouts for done in rollout.sampled]))
        return [
            Group(rollout, _take(verdicts, rollout.completions), _take(verdicts, rollout.explanations))
            for rollout in rollouts
        ]

    def verdicts(self, items: list[Item]) -> list[Verdict]:
        """Verifies each (response, gold answers, meta); returns the verdicts in order.

        Raises:
            ActorFailed: an actor was lost more often than trainer.max_restarts.
            WaitExpired: no actor is left and no replacement came up in time.
        """
        size = max(1, min(MAX_BLOCK, -(-len(items) // (BLOCKS_PER_ACTOR * self.size))))
        blocks = [items[start : start + size] for start in range(0, len(items), size)]
        answers = self.dispatch(
            blocks, lambda actor, block: actor.judge.remote(block), f"verifying {len(items)} responses"
        )
        return [verdict for answer in answers for verdict in answer]


def _item(rollout: Rollout, completion: Completion) -> Item:
    problem = rollout.prompt.problem
    return completion.text, problem.answers, {"question": problem.question, **problem.meta}


def _take(verdicts: Any, completions: list[Completion]) -> list[Verdict]:
    return [next(verdicts) for _ in completions]
