"""All learner ranks, as the driver sees them: each call is a collective call on every rank."""

import threading
import time
from typing import Any

import numpy as np
import ray

from expo_ray.algorithms.tokens import merge_metrics, metric_means
from expo_ray.messages import TrainingBatch, UpdateReport
from expo_ray.runtime.waits import ActorFailed, Waiter, WaitExpired
from expo_ray.sync import SyncTimeout

NEWS_S = 40.0
"""After a rank failed: how long to wait for the others, to learn which one died. Ray takes this long to notice a lost
node."""


class LearnersLost(RuntimeError):
    """Ranks died or hang, so the group is unusable. A new group must start from a checkpoint."""

    def __init__(self, sentence: str, ranks: list[str]) -> None:
        super().__init__(sentence)
        self.ranks = ranks


class LearnerGroup:
    """Calls a method on every rank and merges the answers.

    Args:
        ranks: actor name -> Ray handle, in the order of ranks.
        waiter: bounds every wait.
        wait_s: the bound.
        sync_s: bound on connecting to the rollout workers, and on one sync.
    """

    def __init__(self, ranks: dict[str, Any], waiter: Waiter, wait_s: float, sync_s: float) -> None:
        self.ranks, self.waiter, self.wait_s, self.sync_s = ranks, waiter, wait_s, sync_s
        self.turn = threading.RLock()
        """Held during a call, or during several that belong together. Two threads call; ranks that received their calls
        in different orders would each wait in another collective operation, and none would end."""
        self.weight_version = 0
        """Number of updates that the weights have had."""

    def update(self, batch: TrainingBatch) -> UpdateReport:
        """Updates the policy on a batch, which is put into the object store once for all ranks."""
        began = time.monotonic()
        shared = ray.put(batch)
        with self.turn:
            answers = self.all("update", f"the update of step {batch.step}", shared)
            self.weight_version = batch.step + 1
        tokens = sum(len(sample.completion_ids) for sample in batch.samples)
        return UpdateReport(metric_means(merge_metrics(answers)), tokens, time.monotonic() - began)

    def score(
        self,
        sequences: list[tuple[np.ndarray, np.ndarray]],
        temperature: float = 1.0,
        reference: bool = False,
        likeliest: int = 0,
    ) -> list[Any]:
        """Log-probabilities of `(context ids, scored ids)` pairs: see `algorithms.base.Score`."""
        if not sequences:
            return []
        found: dict[int, Any] = {}
        what = f"scoring {len(sequences)} sequences"
        for share in self.all("score", what, ray.put(sequences), temperature, reference, likeliest):
            found.update(share)
        return [found[i] for i in range(len(sequences))]

    def connect(self, workers: dict[str, Any]) -> None:
        """Opens the weight transfer to the rollout actors.

        Raises:
            ActorFailed: with a SyncError that names the worker as its cause.
        """
        self.all("connect", "connecting learners and rollout workers", workers, seconds=self.sync_s)

    def send(self, weight_version: int) -> tuple[int, float]:
        """Sends the weights; returns the bytes and seconds that rank 0 measured, which drives the transfer.

        Raises:
            ActorFailed: with a SyncError that names the worker as its cause.
        """
        what = f"the weight sync to version {weight_version}"
        return self.all("send", what, weight_version, seconds=self.sync_s)[0]

    def all(self, method: str, what: str, *arguments: Any, seconds: float | None = None) -> list[Any]:
        """Calls a method on every rank and waits for all answers, in the order of ranks.

        Args:
            method: name of the method.
            what: what is waited for, for errors.
            arguments: of the method, the same for every rank.
            seconds: bound on the wait; None for trainer.wait_s.

        Raises:
            LearnersLost: a rank's process is gone, or some ranks do not answer.
            ActorFailed: a rank raised, and all are still alive.
        """
        bound = self.wait_s if seconds is None else seconds
        with self.turn:
            refs = {name: getattr(handle, method).remote(*arguments) for name, handle in self.ranks.items()}
            try:
                return list(self.waiter.gather(refs, what, bound).values())
            except WaitExpired as error:
                raise LearnersLost(str(error), error.actors) from error
            except ActorFailed as error:
                raise self._diagnosis(error, self.waiter.settle(refs, what, NEWS_S)) from error

    def _diagnosis(self, first: ActorFailed, outcomes: dict[str, Any]) -> Exception:
        """Classifies a failed collective call after every rank had time to answer.

        A rank whose peer died raises too, often before Ray notices the death, so `first` may name the wrong rank.
        """
        gone = {n: o for n, o in outcomes.items() if isinstance(o, ActorFailed) and o.cause is None}
        if gone:
            return LearnersLost("; ".join(str(error) for error in gone.values()), list(gone))
        late = {n: o for n, o in outcomes.items() if isinstance(o, WaitExpired)}
        # A sync that timed out without a late worker hung in the learners' own gathering.
        if late and isinstance(first.cause, SyncTimeout) and not first.cause.workers:
            return LearnersLost(f"{first}; {'; '.join(map(str, late.values()))}", list(late))
        return first
