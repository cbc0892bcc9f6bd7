"""All rollout workers, as the driver sees them."""

from typing import Any

import numpy as np

from expo_ray.driver.waits import Waiter
from expo_ray.messages import Rollout
from expo_ray.rollout.request import RolloutRequest, Sampling


class RolloutFleet:
    """Shares requests out over the rollout actors and puts their answers back in order.

    Args:
        workers: actor name -> Ray handle.
        waiter: bounds every wait.
        wait_s: the bound.
    """

    def __init__(self, workers: dict[str, Any], waiter: Waiter, wait_s: float) -> None:
        self.workers, self.waiter, self.wait_s = workers, waiter, wait_s

    def generate(self, requests: list[RolloutRequest], sampling: Sampling, seed: tuple[int, ...]) -> list[Rollout]:
        """Samples all requests.

        Args:
            requests: one for each prompt; they go round-robin to the workers.
            sampling: how to sample.
            seed: what the generators are seeded with, together with the worker's number.

        Returns:
            One rollout for each request, in their order.
        """
        names = list(self.workers)
        refs = {}
        for index, name in enumerate(names):
            share = requests[index :: len(names)]
            if share:
                number = int(np.random.SeedSequence([*seed, index]).generate_state(1)[0])
                refs[name] = self.workers[name].generate.remote(share, sampling, number)
        answers = self.waiter.gather(refs, f"sampling {len(requests)} prompts", self.wait_s)
        rollouts: list[Rollout | None] = [None] * len(requests)
        for index, name in enumerate(names):
            if name in answers:
                rollouts[index :: len(names)] = answers[name]
        return [rollout for rollout in rollouts if rollout is not None]

    def probe(self, sequences: list[list[int]]) -> dict[str, Any]:
        """Each engine's weight version and log-probabilities of the probe sequences (expo_ray.sync.proof)."""
        refs = {name: worker.sync_probe.remote(sequences) for name, worker in self.workers.items()}
        return self.waiter.gather(refs, "probing the engines after a weight sync", self.wait_s)
