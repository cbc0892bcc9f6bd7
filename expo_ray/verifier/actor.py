"""The verifier's actor, a plain class that the driver wraps with ray.remote, and its fleet in the driver."""

from typing import Any, ClassVar

from expo_ray.config.schema import VerifierConfig
from expo_ray.messages import Completion, Group, Rollout, Verdict
from expo_ray.runtime.dispatch import Fleet
from expo_ray.runtime.process import ActorProcess, begin
from expo_ray.runtime.spans import span
from expo_ray.verifier.pool import Item, VerifierPool

MAX_BLOCK = 256
"""Largest block in items. When an actor dies, its whole block is verified again."""
BLOCKS_PER_ACTOR = 4
"""A small batch is cut into this many blocks for each actor, so that none idles while another has a slow block."""


class VerifierActor(ActorProcess):
    """Grades responses in killable processes (expo_ray.verifier.pool).

    Args:
        config: the task and its limits.
        name: of this actor.
        log_folder: where its log goes; None leaves the process's output alone.
    """

    def __init__(self, config: VerifierConfig, name: str = "verifier", log_folder: str | None = None) -> None:
        if log_folder is not None:
            begin(name, log_folder)
        self._pool = VerifierPool(config)

    def judge(self, items: list[Item]) -> list[Verdict]:
        """A verdict for each (response, gold answers, meta), in order.

        Raises:
            VerifierStartError: no grading process can be had.
        """
        with span("judge", items=len(items)):
            return self._pool.judge(items)

    def ping(self) -> dict[str, Any]:
        """alive: processes; pids: theirs; restarts: processes replaced so far; isolation: layers in force."""
        return self._pool.ping()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


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
    return completion.text, problem.answers, {"question": problem.question, **problem.meta}, problem.task


def _take(verdicts: Any, completions: list[Completion]) -> list[Verdict]:
    return [next(verdicts) for _ in completions]
