"""All learner ranks, as the driver sees them: one call is one collective call on every rank."""

import time
from typing import Any

import numpy as np
import ray

from expo_ray.algorithms.tokens import merge_metrics, metric_means
from expo_ray.driver.waits import Waiter
from expo_ray.messages import TrainingBatch, UpdateReport


class LearnerGroup:
    """Args:
    ranks: actor name -> Ray handle, in the order of ranks.
    waiter: bounds every wait.
    wait_s: the bound.
    """

    def __init__(self, ranks: dict[str, Any], waiter: Waiter, wait_s: float) -> None:
        self.ranks, self.waiter, self.wait_s = ranks, waiter, wait_s

    def update(self, batch: TrainingBatch) -> UpdateReport:
        """One update on the batch; the batch is put into the object store once for all ranks."""
        began = time.monotonic()
        shared = ray.put(batch)
        answers = self.all("update", f"the update of step {batch.step}", shared)
        tokens = sum(len(sample.completion_ids) for sample in batch.samples)
        return UpdateReport(metric_means(merge_metrics(answers)), tokens, time.monotonic() - began)

    def score(self, sequences: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Log-probabilities under the current policy, temperature 1, of `(context ids, scored ids)` pairs.

        Returns:
            For each pair [T] float32 nats.
        """
        if not sequences:
            return []
        found: dict[int, np.ndarray] = {}
        for share in self.all("score", f"scoring {len(sequences)} sequences", ray.put(sequences)):
            found.update(share)
        return [found[i] for i in range(len(sequences))]

    def connect(self, workers: dict[str, Any]) -> None:
        """Opens the weight transfer to the rollout actors."""
        self.all("connect", "connecting learners and rollout workers", workers)

    def send(self, weight_version: int) -> tuple[int, float]:
        """Sends the weights; returns bytes and seconds of rank 0, which drives the transfer."""
        return self.all("send", f"the weight sync to version {weight_version}", weight_version)[0]

    def all(self, method: str, what: str, *arguments: Any) -> list[Any]:
        """Calls a method on every rank and waits for all answers, in the order of ranks."""
        refs = {name: getattr(handle, method).remote(*arguments) for name, handle in self.ranks.items()}
        return list(self.waiter.gather(refs, what, self.wait_s).values())
