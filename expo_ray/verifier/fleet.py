"""All verifier actors, as the driver sees them."""

import time
from collections.abc import Callable
from typing import Any

import ray

from expo_ray.messages import Completion, Group, Rollout, Verdict
from expo_ray.runtime.waits import ActorFailed, Waiter
from expo_ray.verifier.pool import Item

MAX_BLOCK = 256
"""Items of one request: what is sent again when an actor dies."""


class Judging:
    """One batch of items on its way through the verifier actors.

    Args:
        handles: actor name -> Ray handle of a VerifierActor; a lost one is replaced in this mapping.
        items: (response, gold answers, meta).
        replace: ends an actor (name, reason), starts another in its place and returns its handle; raises
            ActorFailed when that one was lost too often.
        waiter: names the actors in errors.
        wait_s: seconds that one block of items may take, and an actor's start.
    """

    def __init__(
        self,
        handles: dict[str, Any],
        items: list[Item],
        replace: Callable[[str, str], Any],
        waiter: Waiter,
        wait_s: float,
    ) -> None:
        self.handles, self.items, self.replace, self.waiter, self.wait_s = handles, items, replace, waiter, wait_s
        size = max(1, min(MAX_BLOCK, -(-len(items) // (4 * len(handles)))))
        starts = range(0, len(items), size)
        self.waiting = [range(start, min(start + size, len(items))) for start in reversed(starts)]
        self.running: dict[Any, tuple[str, range | None, float]] = {}
        """Reference -> actor, its block (None: it is starting), and when it is given up."""
        self.verdicts: list[Verdict | None] = [None] * len(items)

    def run(self) -> list[Verdict]:
        """A verdict for each item, in order.

        Raises:
            ActorFailed: an actor was lost more often than trainer.max_restarts.
        """
        while self.waiting or any(block is not None for _, block, _ in self.running.values()):
            self._hand_out()
            ends = min(deadline for _, _, deadline in self.running.values())
            done, _ = ray.wait(list(self.running), num_returns=1, timeout=max(0.0, ends - time.monotonic()))
            for ref in done:
                self._take(ref)
            if not done:
                self._give_up_late()
        return [verdict for verdict in self.verdicts if verdict is not None]

    def _hand_out(self) -> None:
        busy = {name for name, _, _ in self.running.values()}
        for name in self.handles:
            if name not in busy and self.waiting:
                block = self.waiting.pop()
                self._submit(name, self.handles[name].judge.remote([self.items[i] for i in block]), block)

    def _submit(self, name: str, ref: Any, block: range | None) -> None:
        self.running[ref] = (name, block, time.monotonic() + self.wait_s)

    def _take(self, ref: Any) -> None:
        name, block, _ = self.running.pop(ref)
        try:
            answers = self.waiter.take(ref, name, f"grading {len(self.items)} responses")
        except ActorFailed as error:
            self._lose(name, block, str(error))
            return
        if block is None:
            self.waiter.places[name] = answers
            return
        for item, verdict in zip(block, answers, strict=True):
            self.verdicts[item] = verdict

    def _lose(self, name: str, block: range | None, reason: str) -> None:
        if block is not None:
            self.waiting.append(block)
        self.handles[name] = self.replace(name, reason)
        self._submit(name, self.handles[name].ready.remote(), None)

    def _give_up_late(self) -> None:
        now = time.monotonic()
        for ref, (name, block, deadline) in list(self.running.items()):
            if now >= deadline:
                del self.running[ref]
                what = "starting again" if block is None else f"grading {len(block)} responses"
                self._lose(name, block, str(self.waiter.expired([name], what, self.wait_s)))


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
