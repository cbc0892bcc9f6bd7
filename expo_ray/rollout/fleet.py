"""All rollout workers, as the driver sees them: whoever of them is lost, every request is sampled once."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from expo_ray.messages import Rollout, RolloutRequest, Sampling
from expo_ray.rollout.requests import share_out
from expo_ray.runtime.waits import ActorFailed, Waiter

Share = tuple[int, list[RolloutRequest]]
"""A share's number, in [0, rollout.workers), and its requests."""
Running = tuple[str, Any, Share, float]
"""A worker's name and handle, the share that it samples, and when it is given up."""


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
        shares_cards: an engine and a learner rank take turns on each card.
    """

    def __init__(
        self,
        workers: dict[str, Any],
        replace: Callable[[str, str], Any],
        waiter: Waiter,
        wait_s: float,
        start_s: float,
        shares_cards: bool = False,
    ) -> None:
        self.workers, self.waiter, self.wait_s, self.start_s = workers, waiter, wait_s, start_s
        self.shares = len(workers)
        self.refresh: Callable[[], object] | None = None
        """Brings replacements to the current weights; None where the engines keep those they were started with."""
        self.shares_cards = shares_cards
        self._replace = replace
        self._joining: dict[str, tuple[Any, Any]] = {}
        self._guard = threading.RLock()
        """Sampling ahead and the weight sync are different threads."""

    def generate(self, requests: list[RolloutRequest], sampling: Sampling, seed: tuple[int, ...]) -> list[Rollout]:
        """Samples all requests.

        Args:
            requests: one for each prompt; the shares are balanced by their expected tokens.
            sampling: how to sample.
            seed: what the generators are seeded with, together with the share's number.

        Returns:
            One rollout for each request, in their order.

        Raises:
            ActorFailed, WaitExpired: workers were lost more often than trainer.max_restarts, or not replaced in time.
        """
        places = share_out(requests, self.shares)
        waiting = deque((number, [requests[i] for i in indices]) for number, indices in enumerate(places))
        rollouts: list[Any] = [None] * len(requests)
        running: dict[Any, Running] = {}
        what = f"sampling {len(requests)} prompts"
        while waiting or running:
            self._hand_out(waiting, running, sampling, seed)
            ends = min(deadline for _, _, _, deadline in running.values())
            ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, ends - time.monotonic()))
            if not ready:
                self._give_up_late(running, waiting, what)
            for ref in ready:
                name, worker, share, _ = running.pop(ref)
                try:
                    for index, rollout in zip(places[share[0]], self.waiter.take(ref, name, what), strict=True):
                        rollouts[index] = rollout
                except ActorFailed as error:
                    waiting.appendleft(share)
                    self.lose(name, str(error), worker)
        return rollouts

    def probe(self, workers: dict[str, Any], sequences: list[list[int]]) -> dict[str, Any]:
        """Each engine's weight version and log-probabilities of the probe sequences (expo_ray.sync.proof)."""
        refs = {name: worker.sync_probe.remote(sequences) for name, worker in workers.items()}
        return self.waiter.gather(refs, "probing the engines after a weight sync", self.wait_s)

    def rest(self) -> None:
        """Engines that share their card with a learner rank sleep until the next sync; others have nothing to do.

        Raises:
            ActorFailed, WaitExpired: an engine could not.
        """
        if self.shares_cards:
            self.waiter.gather({n: w.sleep.remote() for n, w in self.workers.items()}, "engines to sleep", self.wait_s)

    def wake(self, workers: dict[str, Any], part: str) -> None:
        """Gives sleeping engines their memory back: "weights" before a sync, "kv_cache" after it."""
        if self.shares_cards:
            refs = {name: worker.wake.remote(part) for name, worker in workers.items()}
            self.waiter.gather(refs, f"engines to wake ({part})", self.wait_s)

    def lose(self, name: str, reason: str, worker: Any) -> None:
        """Takes a worker out of service and starts another in its place, which serves after the next sync.

        Sampling and sync may both find the same worker lost; it is replaced once.

        Args:
            name: its name.
            reason: what happened.
            worker: the handle that was seen to fail.
        """
        with self._guard:
            joining = self._joining.get(name, (None, None))[0]
            if worker not in (self.workers.get(name), joining):
                return
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
        with self._guard:
            for name, worker in workers.items():
                if self._joining.get(name, (None, None))[0] is worker:
                    del self._joining[name]
            self.workers = {name: worker for name, worker in workers.items() if name not in self._joining}

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
                self.lose(name, str(error), handle)
        return up

    def _hand_out(self, waiting: deque[Share], running: dict[Any, Running], sampling: Sampling, seed: Any) -> None:
        """Gives every idle worker its own share, or one whose worker does not serve."""
        if not self.workers and not running:
            self._bring_in()
        busy = {name for name, _, _, _ in running.values()}
        serving = dict(self.workers)
        for name, worker in serving.items():
            orphans = [s for s in waiting if f"rollout-{s[0]}" == name or f"rollout-{s[0]}" not in serving]
            if name in busy or not orphans:
                continue
            share = next((s for s in orphans if f"rollout-{s[0]}" == name), orphans[0])
            waiting.remove(share)
            number = int(np.random.SeedSequence([*seed, share[0]]).generate_state(1)[0])
            ref = worker.generate.remote(share[1], sampling, number)
            running[ref] = (name, worker, share, time.monotonic() + self.wait_s)

    def _bring_in(self) -> None:
        if self.refresh is not None:
            self.refresh()
        else:
            self.serve(self.members())

    def _give_up_late(self, running: dict[Any, Any], waiting: deque[Share], what: str) -> None:
        now = time.monotonic()
        for ref, (name, worker, share, deadline) in list(running.items()):
            if now >= deadline:
                del running[ref]
                waiting.appendleft(share)
                self.lose(name, str(self.waiter.expired([name], what, self.wait_s)), worker)


def _no_room() -> str:
    have = {name: amount for name, amount in ray.cluster_resources().items() if not name.startswith("node:")}
    return (
        "no rollout worker is left and none could be started again (add a node, or raise trainer.start_s; the "
        f"cluster has {have})"
    )
