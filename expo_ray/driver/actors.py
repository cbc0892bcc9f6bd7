"""Starts, places, replaces and stops a run's actors, and keeps them from one run of a sweep to the next."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from expo_ray.config.keys import as_settings, facts_of
from expo_ray.config.schema import Config
from expo_ray.learner.group import LearnerGroup
from expo_ray.preflight.checks import check_placement
from expo_ray.preflight.placement import PIN
from expo_ray.preflight.plan import Plan
from expo_ray.rewards.actors import RewardFleet
from expo_ray.rollout.fleet import RolloutFleet
from expo_ray.runtime.journal import Events
from expo_ray.runtime.process import environment, process_usage
from expo_ray.runtime.ray_node import join_or_start_ray, stop_ray
from expo_ray.runtime.waits import LOOK_S, ActorFailed, Deadline, RayLost, Waiter, WaitExpired, check_ray
from expo_ray.verifier.actor import VerifierFleet

USAGE_S = 20.0
"""Bound on asking the actors for their memory."""
END_S = 10.0
"""Seconds that Ray gets to end a process before it is killed."""
ENGINE_THREADS = 4
"""Concurrency of a rollout actor in async mode: sampling, weight sync, status calls, one spare."""
SYNC_GRACE_S = 30.0
"""Added to sync.timeout_s for the driver's own wait, so that the learners can report which worker was late."""


def strategy(bundles: list[dict[str, float]], nodes: list[dict[str, Any]]) -> str:
    """Chooses Ray's placement strategy: one node if one has room, because links inside a node are the fastest.

    Otherwise as few nodes as possible; Ray then keeps neighbours in the list together.
    """
    wanted: Counter[str] = Counter()
    for bundle in bundles:
        wanted.update(bundle)
    rooms = [node["Resources"] for node in nodes if node.get("Alive", node.get("alive"))]
    one = any(all(room.get(name, 0.0) >= amount for name, amount in wanted.items()) for room in rooms)
    return "STRICT_PACK" if one else "PACK"


class Actors:
    """Owns every process that a run starts; nothing else stops or replaces one.

    Args:
        plan: the run's plan; one without learners is an evaluation's.
        run_folder: actors log under its `logs/`.
        context_tokens: longest prompt plus longest completion, in tokens.
        stop_ids: token ids that end a completion.
        events: records lost actors.

    Raises:
        WaitExpired: the actors are not up within trainer.start_s.
        ActorFailed: one cannot start.
    """

    def __init__(
        self,
        plan: Plan,
        run_folder: Path,
        context_tokens: int,
        stop_ids: tuple[int, ...],
        events: Events | None = None,
    ) -> None:
        config = plan.config
        self.plan, self.config, self.context_tokens, self.stop_ids = plan, config, context_tokens, stop_ids
        self.ranks = plan.actor("learner").count
        self.log_folder = str(run_folder / "logs")
        self.events = events or Events(run_folder)
        self.waiter = Waiter(self.log_folder)
        self._started: dict[str, Any] = {}
        self._losses: dict[str, int] = {}
        self.on_gpu = config.profile.device == "cuda"
        self.owns_ray = join_or_start_ray(config)
        self._group: PlacementGroup | None = None
        wait_s, start_s, sync_s = config.trainer.wait_s, config.trainer.start_s, config.sync.timeout_s
        try:
            if not self.owns_ray:
                self.plan = check_placement(plan, ray.nodes())
            self._group = self._place() if self.on_gpu else None
            workers = {name: self._start(name) for name in self.names("rollout", config.rollout.workers)}
            ranks = {name: self._start(name) for name in self.names("learner", self.ranks)}
            verifiers = {name: self._start(name) for name in self.names("verifier", config.verifier.workers)}
            callers = {name: self._start(name) for name in self.names("reward", self.plan.actor("reward").count)}
            self.verifiers = VerifierFleet(verifiers, self.replace, self.waiter, wait_s, start_s)
            self.rewards = RewardFleet(callers, self.replace, self.waiter, wait_s, start_s)
            self.rollouts = RolloutFleet(workers, self.replace, self.waiter, wait_s, start_s)
            self.rollouts.shares_cards = self.plan.colocated
            self.learners = LearnerGroup(ranks, self.waiter, wait_s, sync_s + SYNC_GRACE_S)
            if self.plan.colocated:
                # vLLM sizes its KV cache by the memory that is free when it starts, so engines start on empty cards
                # and sleep before the learners load.
                self._begin(workers | verifiers | callers, {})
                self.rollouts.rest()
                self._begin({}, ranks)
            else:
                self._begin(workers | verifiers | callers, ranks)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def names(kind: str, count: int) -> list[str]:
        """The names of one kind of actors: rollout-0, rollout-1, ..."""
        return [f"{kind}-{index}" for index in range(count)]

    def replace(self, name: str, reason: str) -> Any:
        """Ends an actor, dead or stuck, and starts another under the same name.

        Raises:
            ActorFailed: it was lost more than trainer.max_restarts times since the last completed step.
        """
        self._losses[name] = self._losses.get(name, 0) + 1
        self.events.note("lost", f"{name}: {reason}", actor=name, times=self._losses[name])
        limit = self.config.trainer.max_restarts
        if self._losses[name] > limit:
            often = f"{name} was lost {self._losses[name]} times without a completed step between them"
            raise ActorFailed(f"{often} (trainer.max_restarts={limit}); the last time: {reason}", name)
        self._end([name])
        return self._start(name)

    def restart_learners(self) -> None:
        """Ends every learner rank and starts the group again, with the base model's weights.

        Raises:
            WaitExpired: no node has room for it, or it is not up within trainer.start_s.
        """
        # All of them, also the healthy ones: a process group that has lost a rank cannot take in a new one.
        self._end(list(self.learners.ranks))
        self.learners.ranks = {name: self._start(name) for name in self.learners.ranks}
        self._begin({}, self.learners.ranks)

    def adopt(self, config: Config, run_folder: Path, events: Events) -> None:
        """Hands the actors to another run (`WarmActors`): moves their logs and rebuilds the learners.

        Raises:
            LearnersLost, ActorFailed, WaitExpired: an actor was lost since the last run.
        """
        self.config, self.events, self.log_folder = config, events, str(run_folder / "logs")
        self.waiter = Waiter(self.log_folder, self.waiter.places)
        self.verifiers.waiter = self.rewards.waiter = self.rollouts.waiter = self.learners.waiter = self.waiter
        handles = self._handles()
        moves = {name: handle.log_to.remote(name, self.log_folder) for name, handle in handles.items()}
        self.waiter.gather(moves, "moving the actors' logs", config.trainer.wait_s)
        self.learners.sync_s = config.sync.timeout_s + SYNC_GRACE_S
        self.learners.all("rebuild", "building the learners again", self._learner_config())

    def step_done(self) -> None:
        """Forgets earlier losses: trainer.max_restarts counts those without a completed step between them."""
        self._losses.clear()

    def usage(self) -> dict[str, float]:
        """Measures `memory/<actor>_{rss_mib,open_files,threads}` of all actors and the driver, and the object store.

        An actor that does not answer is left out; its loss is handled where its work is waited for.
        """
        handles = self._handles()
        refs = {name: handle.usage.remote() for name, handle in handles.items()}
        found = self.waiter.settle(refs, "measuring memory", USAGE_S) | {"driver": process_usage(of_children=False)}
        values = {
            f"memory/{name}_{what}": value
            for name, of in found.items()
            if isinstance(of, dict)
            for what, value in of.items()
        }
        total, free = ray.cluster_resources(), ray.available_resources()
        used = total.get("object_store_memory", 0.0) - free.get("object_store_memory", 0.0)
        return values | {"memory/object_store_mib": used / 2**20}

    def _handles(self) -> dict[str, Any]:
        return self.rollouts.workers | self.verifiers.workers | self.rewards.workers | self.learners.ranks

    def draining(self) -> list[str]:
        """Names the actors on nodes that are about to be preempted."""
        # Ray has no public call for this; Ray Train's preemption watcher makes the same private one.
        nodes = ray._private.state.state.get_draining_nodes()
        return sorted(name for name, place in self.waiter.places.items() if place.node_id in nodes)

    def close(self) -> None:
        """Stops Ray with all actors if this run started Ray; in a cluster that it joined, only its actors."""
        if self.owns_ray:
            stop_ray()
            return
        with suppress(RayLost):  # then nobody is left here to end an actor; Ray ends those of a lost driver elsewhere
            check_ray()
            if self._group is not None:
                remove_placement_group(self._group)
            self._end(list(self._started), grace_s=END_S)

    def _begin(self, workers: dict[str, Any], ranks: dict[str, Any]) -> None:
        """Waits until engines are built and the learners have joined their group; both start at the same time."""
        bound = self.config.trainer.start_s
        starting = {name: handle.ready.remote() for name, handle in workers.items()}
        if ranks:
            # The group meets on the node of rank 0, which is known only once Ray has placed it.
            first = next(iter(ranks))
            address = self.waiter.gather({first: ranks[first].address.remote()}, "starting the learners", bound)[first]
            starting |= {name: handle.start.remote(*address) for name, handle in ranks.items()}
        self.waiter.places.update(self.waiter.gather(starting, f"starting {', '.join(starting)}", bound))

    def _start(self, name: str) -> Any:
        kind, _, number = name.partition("-")
        handle = getattr(self, f"_{kind}")(int(number), name)
        self._started[name] = handle
        return handle

    def _end(self, names: list[str], grace_s: float = 0.0) -> None:
        """Ends actors' processes, even those that do not answer.

        Ray gets `grace_s` first: a process that is killed before Ray has ended it counts as crashed, and Ray prints
        that on the terminal.
        """
        here, local = ray.get_runtime_context().get_node_id(), []
        for name in names:
            ray.kill(self._started.pop(name))
            place = self.waiter.places.pop(name, None)
            if place is not None and place.node_id == here:
                with suppress(psutil.NoSuchProcess):
                    local.append(psutil.Process(place.pid))
        _, left = psutil.wait_procs(local, timeout=grace_s)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # one stopped by SIGSTOP never sees Ray's request

    def _rollout(self, index: int, name: str) -> Any:
        from expo_ray.rollout.worker import RolloutWorker

        options = self._options("rollout", bundle=index)
        if self.config.trainer.async_steps:
            options["max_concurrency"] = ENGINE_THREADS
        rollout = replace(self.config.rollout, max_sequences=self.plan.max_sequences)
        arguments = (replace(self.config, rollout=rollout), index, self.context_tokens, self.stop_ids, self.log_folder)
        return ray.remote(RolloutWorker).options(**options).remote(*arguments)

    def _learner(self, rank: int, name: str) -> Any:
        from expo_ray.learner.rank import LearnerRank

        # Bundles hold the engines first, then the ranks; on shared cards each holds one of both.
        options = self._options("learner", bundle=rank if self.plan.colocated else self.config.rollout.workers + rank)
        return ray.remote(LearnerRank).options(**options).remote(self._learner_config(), rank, self.log_folder)

    def _learner_config(self) -> Config:
        # The plan may be that of an earlier run, whose actors this one has taken over.
        return replace(self.config, learner=replace(self.plan, config=self.config).learner)

    def _verifier(self, index: int, name: str) -> Any:
        from expo_ray.verifier.actor import VerifierActor

        cpus = self.plan.actor("verifier").ray_cpus
        options = {"num_cpus": cpus, "runtime_env": {"env_vars": environment("cpu", 1)}}
        return ray.remote(VerifierActor).options(**options).remote(self.config.verifier, name, self.log_folder)

    def _reward(self, index: int, name: str) -> Any:
        from expo_ray.rewards.actors import RewardActor

        options = {"num_cpus": self.plan.actor("reward").ray_cpus, "runtime_env": {"env_vars": environment("cpu", 1)}}
        arguments = (self.config.reward, self.config.trainer.wait_s, name, self.log_folder)
        return ray.remote(RewardActor).options(**options).remote(*arguments)

    def _options(self, name: str, bundle: int) -> dict[str, Any]:
        profile, cluster = self.config.profile, self.config.cluster
        threads = self.plan.learner_threads if name == "learner" else profile.threads_per_actor
        wanted = {"rollout": cluster.rollout_resource, "learner": cluster.learner_resource}[name]
        options: dict[str, Any] = {
            "num_cpus": self.plan.actor(name).ray_cpus,
            "runtime_env": {"env_vars": environment(profile.device, threads, profile.deterministic)},
            "resources": {wanted: PIN} if wanted else {},
        }
        if self._group is not None:
            options["num_gpus"] = self.plan.actor(name).gpus
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=bundle
            )
        return options

    def _place(self) -> PlacementGroup:
        """Reserves one bundle for each engine and each learner rank, or for each pair that shares a card.

        Raises:
            WaitExpired: the cluster did not free them within trainer.start_s.
        """
        config, cpus = self.config, {name: self.plan.actor(name).ray_cpus for name in ("rollout", "learner")}
        engine = {"GPU": config.rollout.tensor_parallel, "CPU": cpus["rollout"]}
        rank = {"GPU": 1, "CPU": cpus["learner"]}
        if pin := config.cluster.rollout_resource:
            engine[pin] = PIN
        if pin := config.cluster.learner_resource:
            rank[pin] = PIN
        bundles = [engine] * config.rollout.workers + [rank] * self.ranks
        if self.plan.colocated:
            bundles = [engine | rank | {"CPU": cpus["rollout"] + cpus["learner"]}] * self.ranks
        group = placement_group(bundles, strategy=strategy(bundles, ray.nodes()))
        deadline = Deadline(config.trainer.start_s)
        while not group.wait(timeout_seconds=min(LOOK_S, deadline.left)):  # it hears no signal meanwhile
            check_ray()
            if deadline.left:
                continue
            have = ray.cluster_resources()
            remove_placement_group(group)
            raise WaitExpired(
                f"the cluster did not free {len(bundles)} bundles {bundles} within {config.trainer.start_s:.0f} s; "
                f"it has {have.get('GPU', 0):.0f} GPUs and {have.get('CPU', 0):.0f} CPUs in all",
                [],
            )
        return group


class WarmActors:
    """Hands the actors of a finished run to the next one, if that one would start the same actors.

    Learners are rebuilt for each run and the first weight sync gives the engines its base model, so a run on warm
    actors is the same, bit for bit, as one that starts its own.
    """

    def __init__(self) -> None:
        self._idle: Actors | None = None

    def take(self, plan: Plan, folder: Path, context_tokens: int, stop_ids: tuple[int, ...], events: Events) -> Actors:
        """Returns actors for a run; arguments and errors are those of `Actors`."""
        idle, self._idle = self._idle, None
        fits = idle is not None and context_tokens <= idle.context_tokens and stop_ids == idle.stop_ids
        if idle is not None and fits and _same(idle.plan, plan):
            idle.adopt(plan.config, folder, events)
            return idle
        if idle is not None:
            idle.close()
        return Actors(plan, folder, context_tokens, stop_ids, events)

    def give_back(self, actors: Actors) -> None:
        """Takes back the actors of a run that ended without an error."""
        self._idle = actors

    def close(self) -> None:
        """Stops the actors that are kept."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None


def _same(running: Plan, wanted: Plan) -> bool:
    """Whether actors that were started for one plan serve a run of the other."""

    def started_with(plan: Plan) -> dict[str, Any]:
        return {key: value for key, value in as_settings(plan.config).items() if facts_of(key).actors}

    # The number of sequences may be derived from settings in which the runs differ.
    return running.max_sequences == wanted.max_sequences and started_with(running) == started_with(wanted)
