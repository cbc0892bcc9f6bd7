"""All rollout workers, as the driver sees them: whoever of them is lost, every request is sampled once."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from expo_ray.driver.waits import ActorFailed, Waiter
from expo_ray.messages import Rollout
from expo_ray.rollout.request import RolloutRequest, Sampling

Share = tuple[int, list[RolloutRequest]]
"""A share's number, in [0, rollout.workers), and its requests."""


class RolloutFleet:
    """Shares requests out over the rollout actors and puts their answers back in order.

    A share's completions depend on its number, not on the worker that samples it, so a lost worker changes
    nothing but the time. Its replacement serves after the next weight sync has proved it.

    Args:
        workers: actor name -> Ray handle.
        replace: ends an actor (name, reason), starts another in its place and returns its handle; raises
            ActorFailed when that one was lost too often.
        waiter: bounds every wait.
        wait_s: bound on one share.
        start_s: bound on a replacement's start.
    """

    def __init__(
        self,
        workers: dict[str, Any],
        replace: Callable[[str, str], Any],
        waiter: Waiter,
        wait_s: float,
        start_s: float,
    ) -> None:
        self.workers, self.waiter, self.wait_s, self.start_s = workers, waiter, wait_s, start_s
        self.shares = len(workers)
        self.refresh: Callable[[], object] | None = None
        """Brings replacements to the current weights; None where the engines keep those they were started with."""
        self._replace = replace
        self._joining: dict[str, tuple[Any, Any]] = {}

    def generate(self, requests: list[RolloutRequest], sampling: Sampling, seed: tuple[int, ...]) -> list[Rollout]:
        """Samples all requests.

        Args:
            requests: one for each prompt; they go round-robin to the shares.
            sampling: how to sample.
            seed: what the generators are seeded with, together with the share's number.

        Returns:
            One rollout for each request, in their order.

        Raises:
            ActorFailed, WaitExpired: workers were lost more often than trainer.max_restarts, or not replaced in time.
        """
        waiting = deque((number, requests[number :: self.shares]) for number in range(min(self.shares, len(requests))))
        rollouts: list[Any] = [None] * len(requests)
        running: dict[Any, tuple[str, Share, float]] = {}
        what = f"sampling {len(requests)} prompts"
        while waiting or running:
            self._hand_out(waiting, running, sampling, seed)
            ends = min(deadline for _, _, deadline in running.values())
            ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, ends - time.monotonic()))
            if not ready:
                self._give_up_late(running, waiting, what)
            for ref in ready:
                name, share, _ = running.pop(ref)
                try:
                    rollouts[share[0] :: self.shares] = self.waiter.take(ref, name, what)
                except ActorFailed as error:
                    waiting.appendleft(share)
                    self.lose(name, str(error))
        return rollouts

    def probe(self, workers: dict[str, Any], sequences: list[list[int]]) -> dict[str, Any]:
        """Each engine's weight version and log-probabilities of the probe sequences (expo_ray.sync.proof)."""
        refs = {name: worker.sync_probe.remote(sequences) for name, worker in workers.items()}
        return self.waiter.gather(refs, "probing the engines after a weight sync", self.wait_s)

    def lose(self, name: str, reason: str) -> None:
        """Takes a worker out of service and starts another in its place, which serves after the next sync."""
        self.workers.pop(name, None)
        handle = self._replace(name, reason)
        self._joining[name] = (handle, handle.ready.remote())

    def members(self) -> dict[str, Any]:
        """Everyone who can take weights now: those who serve, and replacements whose engines are up.

        Waits for a replacement where nobody else is left.

        Raises:
            WaitExpired: none came up within trainer.start_s.
        """
        deadline = time.monotonic() + self.start_s
        while True:
            up = self._come_up()
            if self.workers or up:
                both = self.workers | up
                return {name: both[name] for name in sorted(both)}
            refs = {ref: name for name, (_, ref) in self._joining.items()}
            left = deadline - time.monotonic()
            if left <= 0:
                raise self.waiter.expired(sorted(refs.values()), _no_room(), self.start_s)
            ray.wait(list(refs), num_returns=1, timeout=left)

    def serve(self, workers: dict[str, Any]) -> None:
        """From now on these serve: they were proved to hold the current weights."""
        self.workers = dict(workers)
        for name in workers:
            self._joining.pop(name, None)

    def _come_up(self) -> dict[str, Any]:
        """The replacements whose engines are built; one that failed to start is replaced in its turn."""
        up: dict[str, Any] = {}
        for name, (handle, ref) in list(self._joining.items()):
            if not ray.wait([ref], timeout=0)[0]:
                continue
            try:
                self.waiter.places[name] = self.waiter.take(ref, name, "starting its engine again")
                up[name] = handle
            except ActorFailed as error:
                self.lose(name, str(error))
        return up

    def _hand_out(
        self, waiting: deque[Share], running: dict[Any, tuple[str, Share, float]], sampling: Sampling, seed: Any
    ) -> None:
        """Gives every idle worker its own share, or one whose worker does not serve."""
        if not self.workers and not running:
            self._bring_in()
        busy = {name for name, _, _ in running.values()}
        for name, worker in self.workers.items():
            orphans = [s for s in waiting if f"rollout-{s[0]}" == name or f"rollout-{s[0]}" not in self.workers]
            if name in busy or not orphans:
                continue
            share = next((s for s in orphans if f"rollout-{s[0]}" == name), orphans[0])
            waiting.remove(share)
            number = int(np.random.SeedSequence([*seed, share[0]]).generate_state(1)[0])
            ref = worker.generate.remote(share[1], sampling, number)
            running[ref] = (name, share, time.monotonic() + self.wait_s)

    def _bring_in(self) -> None:
        if self.refresh is not None:
            self.refresh()
        else:
            self.serve(self.members())

    def _give_up_late(self, running: dict[Any, Any], waiting: deque[Share], what: str) -> None:
        now = time.monotonic()
        for ref, (name, share, deadline) in list(running.items()):
            if now >= deadline:
                del running[ref]
                waiting.appendleft(share)
                self.lose(name, str(self.waiter.expired([name], what, self.wait_s)))


def _no_room() -> str:
    have = {name: amount for name, amount in ray.cluster_resources().items() if not name.startswith("node:")}
    return (
        "no rollout worker is left and none could be started again (add a node, or raise trainer.start_s; the "
        f"cluster has {have})"
    )
