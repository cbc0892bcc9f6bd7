"""Weight sync as the driver sees it: send, then prove."""

import numpy as np

from expo_ray.config.schema import Config
from expo_ray.learner.group import LearnerGroup
from expo_ray.messages import Prompt, SyncProof
from expo_ray.rollout.fleet import RolloutFleet
from expo_ray.sync.proof import Probe, choose_probes, prove_sync


class WeightSync:
    """Keeps the rollout engines at the learners' weights.

    Args:
        config: the run's configuration.
        learners: who has the weights.
        rollouts: who needs them.
        prompts: probes are cut from these.
    """

    def __init__(self, config: Config, learners: LearnerGroup, rollouts: RolloutFleet, prompts: list[Prompt]) -> None:
        self.config, self.learners, self.rollouts = config, learners, rollouts
        candidates = [np.concatenate([p.free_ids, p.gold_ids if p.gold_ids is not None else []]) for p in prompts]
        sync = config.sync
        self.probes = choose_probes(
            [[int(token) for token in ids] for ids in candidates],
            count=sync.probe_prompts,
            tokens=sync.probe_tokens,
            seed=config.seed,
        )
        learners.connect(rollouts.workers)

    def push(self, weight_version: int) -> SyncProof:
        """Sends the learners' weights to every engine and proves that they arrived.

        Args:
            weight_version: how many updates these weights have had.

        Raises:
            SyncProofFailed: an engine holds another version, or gives a probe token another log-probability.
        """
        bytes_sent, seconds = self.learners.send(weight_version)
        pairs = [(np.array(ids[:1], np.int32), np.array(ids[1:], np.int32)) for ids in self.probes]
        return prove_sync(
            sequences=self.probes,
            learner=Probe(weight_version, self.learners.score(pairs)),
            workers=self.rollouts.probe(self.probes),
            weight_version=weight_version,
            tolerance=self.config.sync.tolerance,
            bytes_sent=bytes_sent,
            seconds=seconds,
        )
