"""All rollout workers, as the driver sees them."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from expo_ray.messages import Rollout, RolloutRequest, Sampling
from expo_ray.rollout.requests import share_out
from expo_ray.runtime.dispatch import Fleet

Share = tuple[int, list[RolloutRequest]]
"""A share's number, in [0, rollout.workers), and its requests."""


class RolloutFleet(Fleet):
    """Survives lost workers; each request is sampled exactly once.

    A share's completions depend on its number, not on the worker that samples it, so a lost worker changes
    nothing but the time. Its replacement serves after the next weight sync has proved its weights.
    """

    kind: ClassVar[str] = "rollout"
    shares_cards = False
    """Whether an engine and a learner rank take turns on each card."""
    refresh: Callable[[], object] | None = None
    """Syncs the current weights to replacements; None if engines keep the weights that they start with."""

    def generate(self, requests: list[RolloutRequest], sampling: Sampling, seed: tuple[int, ...]) -> list[Rollout]:
        """Samples all requests.

        Args:
            requests: one for each prompt; the shares are balanced by their expected tokens.
            sampling: how to sample.
            seed: seeds the generators, together with the share's number.

        Returns:
            One rollout for each request, in their order.

        Raises:
            ActorFailed, WaitExpired: workers were lost more often than trainer.max_restarts, or not replaced in time.
        """
        places = share_out(requests, self.size)
        shares = [(number, [requests[i] for i in indices]) for number, indices in enumerate(places)]

        def submit(worker: Any, share: Share) -> Any:
            share_seed = np.random.SeedSequence([*seed, share[0]]).generate_state(1)[0]
            return worker.generate.remote(share[1], sampling, int(share_seed))

        rollouts: list[Any] = [None] * len(requests)
        answers = self.dispatch(shares, submit, f"sampling {len(requests)} prompts")
        for indices, answer in zip(places, answers, strict=True):
            for index, rollout in zip(indices, answer, strict=True):
                rollouts[index] = rollout
        return rollouts

    def bring_in(self) -> None:
        """Waits for a replacement and syncs the current weights to it."""
        if self.refresh is not None:
            self.refresh()
        else:
            super().bring_in()

    def probe(self, workers: dict[str, Any], sequences: list[list[int]]) -> dict[str, Any]:
        """Each engine's weight version and log-probabilities of the probe sequences (expo_ray.sync.proof)."""
        refs = {name: worker.sync_probe.remote(sequences) for name, worker in workers.items()}
        return self.waiter.gather(refs, "probing the engines after a weight sync", self.wait_s)

    def digests(self, workers: dict[str, Any]) -> dict[str, Any]:
        """Each engine's digests of the weights that it holds (expo_ray.sync.proof)."""
        refs = {name: worker.sync_digests.remote() for name, worker in workers.items()}
        return self.waiter.gather(refs, "comparing the bits after a weight sync", self.wait_s)

    def rest(self) -> None:
        """Puts engines that share their card with a learner rank to sleep until the next sync.

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
