"""Weight sync as the driver sees it: send the weights, then prove that they arrived."""

from typing import Any

import numpy as np

from expo_ray.config.schema import Config
from expo_ray.learner.group import LearnerGroup
from expo_ray.messages import Prompt, SyncProof
from expo_ray.rollout.fleet import RolloutFleet
from expo_ray.runtime.waits import ActorFailed, WaitExpired
from expo_ray.sync import SyncError
from expo_ray.sync.proof import Probe, choose_probes, compare_digests, prove_sync

ANSWER_S = 15.0
"""After a failed sync: how long an engine may take to answer that it is alive."""


class WeightSync:
    """Keeps the rollout engines at the learners' weights.

    Args:
        config: the run's configuration.
        learners: have the weights.
        rollouts: need them.
        prompts: probe sequences are cut from these.
    """

    def __init__(self, config: Config, learners: LearnerGroup, rollouts: RolloutFleet, prompts: list[Prompt]) -> None:
        self.config, self.learners, self.rollouts = config, learners, rollouts
        candidates = [np.concatenate([p.free_ids, p.gold_ids if p.gold_ids is not None else []]) for p in prompts]
        sync, longest = config.sync, max(max(len(p.free_ids), len(p.conditioned_ids)) for p in prompts)
        room = longest + config.rollout.max_completion_tokens - 1  # the engine samples one token after each probe
        self.probes = choose_probes(
            [[int(token) for token in ids] for ids in candidates],
            count=sync.probe_prompts,
            tokens=min(sync.probe_tokens, room),
            seed=config.seed,
        )
        self._connected: dict[str, Any] = {}
        rollouts.refresh = self.refresh

    def refresh(self) -> None:
        """Syncs the learners' current weights to replaced workers."""
        with self.learners.turn:
            self.push(self.learners.weight_version)

    def push(self, weight_version: int) -> SyncProof:
        """Sends the learners' weights to every engine and proves that they arrived.

        A worker that fails or is late is replaced, and the sync is repeated with the others and with replacements
        that have started by then.

        Args:
            weight_version: number of updates that made these weights.

        Raises:
            SyncProofFailed: an engine holds another version, or gives a probe token another log-probability.
            LearnersLost: a learner rank is gone, or hangs.
            ActorFailed: a worker was lost more often than trainer.max_restarts, or refused the probe.
        """
        # The whole sync is one turn: the sampling thread may start one of its own (`refresh`) at any time.
        with self.learners.turn:
            self.learners.weight_version = weight_version
            return self._push(weight_version)

    def _push(self, weight_version: int) -> SyncProof:
        while True:
            members = self.rollouts.members()
            try:
                proof = self._attempt(members, weight_version)
            except (ActorFailed, WaitExpired) as error:
                if isinstance(error, ActorFailed) and error.actor in members and error.refused:
                    raise
                self._connected = {}
                lost = self._at_fault(members, error)
                if not lost:
                    raise
                for name in lost:
                    self.rollouts.lose(name, str(error), members[name])
                continue
            self.rollouts.serve(members)
            return proof

    def _attempt(self, members: dict[str, Any], weight_version: int) -> SyncProof:
        if members != self._connected:
            self.learners.connect(members)
            self._connected = members
        # On shared cards the KV cache must wait: during the transfer the learners' gathered weights need the room.
        self.rollouts.wake(members, "weights")
        bytes_sent, seconds = self.learners.send(weight_version)
        compared, every = 0, self.config.sync.digest_every
        if every and weight_version % every == 0:
            learner = self.learners.all("digests", "digesting the learners' weights")[0]
            compared = compare_digests(learner, self.rollouts.digests(members), weight_version)
        self.rollouts.wake(members, "kv_cache")
        pairs = [(np.array(ids[:1], np.int32), np.array(ids[1:], np.int32)) for ids in self.probes]
        return prove_sync(
            sequences=self.probes,
            learner=Probe(weight_version, self.learners.score(pairs)),
            workers=self.rollouts.probe(members, self.probes),
            weight_version=weight_version,
            tolerance=self.config.sync.tolerance,
            mean_tolerance=self.config.sync.mean_tolerance,
            bytes_sent=bytes_sent,
            seconds=seconds,
            tensors_compared=compared,
        )

    def _at_fault(self, members: dict[str, Any], error: ActorFailed | WaitExpired) -> list[str]:
        """The workers to blame for a failed sync: those that the error names, and those that do not answer now."""
        # The error may name no worker, or one that only failed because another hangs.
        named = set(error.actors) if isinstance(error, WaitExpired) else {error.actor}
        if isinstance(error, ActorFailed) and isinstance(error.cause, SyncError):
            named |= set(error.cause.workers)
        refs = {name: handle.ready.remote() for name, handle in members.items()}
        answers = self.rollouts.waiter.settle(refs, "asking the engines after a failed sync", ANSWER_S)
        silent = {name for name, answer in answers.items() if isinstance(answer, Exception)}
        return sorted((named & members.keys()) | silent)
