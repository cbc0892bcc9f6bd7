"""The actors' lifetimes and placement: Ray, rollout workers, verifiers and learner ranks, started side by side."""

import logging
import os
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from expo_ray.actor_process import environment
from expo_ray.config.plan import make_plan
from expo_ray.config.schema import Config
from expo_ray.driver.waits import Waiter, WaitExpired
from expo_ray.learner.group import LearnerGroup
from expo_ray.rollout.fleet import RolloutFleet
from expo_ray.verifier.fleet import VerifierFleet

OBJECT_STORE_BYTES = 256 << 20
"""Enough for the batches of a small machine; Ray's default takes 30 % of memory."""


class Actors:
    """Everything a run starts, and the only thing that stops it.

    Args:
        config: the run's configuration.
        run_folder: actors log under its `logs/`.
        context_tokens: longest prompt plus longest completion, in tokens.
        stop_ids: token ids that end a completion.
        with_learners: False for an evaluation, which needs engines and verifiers only.

    Raises:
        WaitExpired: when the actors are not up within trainer.start_s.
        ActorFailed: when one cannot start.
    """

    def __init__(
        self,
        config: Config,
        run_folder: Path,
        context_tokens: int,
        stop_ids: tuple[int, ...],
        with_learners: bool = True,
    ) -> None:
        self.config = config
        self.ranks = config.learner.ranks if with_learners else 0
        self.log_folder = str(run_folder / "logs")
        self.waiter = Waiter(self.log_folder)
        self.plan = make_plan(config)
        self._started: list[Any] = []
        self.on_gpu = config.profile.device == "cuda"
        self.owns_ray = _start_ray(config)
        self._group = self._place() if self.on_gpu else None
        wait_s = config.trainer.wait_s
        try:
            workers = {
                f"rollout-{i}": self._rollout(i, context_tokens, stop_ids) for i in range(config.rollout.workers)
            }
            ranks = {f"learner-{i}": self._learner(i) for i in range(self.ranks)}
            self.verifiers = VerifierFleet(
                {f"verifier-{i}": self._verifier(i) for i in range(config.verifier.workers)}, self._verifier, wait_s
            )
            self._begin(workers, ranks)
        except BaseException:
            self.close()
            raise
        self.rollouts = RolloutFleet(workers, self.waiter, wait_s)
        self.learners = LearnerGroup(ranks, self.waiter, wait_s)

    def close(self) -> None:
        """Stops what was started: the actors with Ray when this run started Ray, else the actors alone."""
        if self._group is not None:
            remove_placement_group(self._group)
        if self.owns_ray:
            ray.shutdown()
            return
        for handle in self._started:
            ray.kill(handle)

    def _begin(self, workers: dict[str, Any], ranks: dict[str, Any]) -> None:
        """Waits until engines are built and the learners have joined their group, both at the same time."""
        bound = self.config.trainer.start_s
        starting = {name: handle.ready.remote() for name, handle in workers.items()}
        if ranks:
            first = next(iter(ranks))
            address = self.waiter.gather({first: ranks[first].address.remote()}, "starting the learners", bound)[first]
            starting |= {name: handle.start.remote(*address) for name, handle in ranks.items()}
        self.waiter.gather(starting, "starting engines and learners", bound)

    def _rollout(self, index: int, context_tokens: int, stop_ids: tuple[int, ...]) -> Any:
        from expo_ray.rollout.worker import RolloutWorker

        options = self._options("rollout", self.config.rollout.tensor_parallel, bundle=index)
        return self._start(RolloutWorker, options, self.config, index, context_tokens, stop_ids, self.log_folder)

    def _learner(self, rank: int) -> Any:
        from expo_ray.learner.rank import LearnerRank

        options = self._options("learner", 1, bundle=self.config.rollout.workers + rank)
        return self._start(LearnerRank, options, self.config, rank, self.log_folder)

    def _verifier(self, index: int) -> Any:
        from expo_ray.verifier.actor import VerifierActor

        cpus = self.plan.actor("verifier").ray_cpus
        options = {"num_cpus": cpus, "runtime_env": {"env_vars": environment("cpu", 1)}}
        return self._start(VerifierActor, options, self.config.verifier)

    def _start(self, actor: type, options: dict[str, Any], *arguments: Any) -> Any:
        handle = ray.remote(actor).options(**options).remote(*arguments)
        self._started.append(handle)
        return handle

    def _options(self, name: str, gpus: int, bundle: int) -> dict[str, Any]:
        profile = self.config.profile
        options: dict[str, Any] = {
            "num_cpus": self.plan.actor(name).ray_cpus,
            "runtime_env": {"env_vars": environment(profile.device, profile.threads_per_actor)},
        }
        if self._group is not None:
            options["num_gpus"] = gpus
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=bundle
            )
        return options

    def _place(self) -> PlacementGroup:
        """One bundle for each engine and each learner rank; never an endless wait for it."""
        config, cpus = self.config, {name: self.plan.actor(name).ray_cpus for name in ("rollout", "learner")}
        bundles = [{"GPU": config.rollout.tensor_parallel, "CPU": cpus["rollout"]}] * config.rollout.workers
        bundles += [{"GPU": 1, "CPU": cpus["learner"]}] * self.ranks
        group = placement_group(bundles, strategy="PACK")
        if not group.wait(timeout_seconds=config.trainer.start_s):
            have = ray.cluster_resources()
            remove_placement_group(group)
            raise WaitExpired(
                f"the cluster did not free {len(bundles)} bundles {bundles} within {config.trainer.start_s:.0f} s; "
                f"it has {have.get('GPU', 0):.0f} GPUs and {have.get('CPU', 0):.0f} CPUs in all",
                [],
            )
        return group


def _start_ray(config: Config) -> bool:
    """Joins the cluster that `cluster.address` (or RAY_ADDRESS) names, or starts Ray on this machine.

    Returns:
        Whether Ray was started here and must be stopped here.
    """
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := config.cluster.address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, **quiet)
        return False
    if config.profile.device == "cpu":
        quiet |= {"num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
    ray.init(address="local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
    return True
