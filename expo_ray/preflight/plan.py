"""Plans a run before anything starts: its actors, batch sizes and memory; plan.txt shows the plan."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from expo_ray.config.resources import Resources, of_cluster, this_machine
from expo_ray.config.schema import Config, DataConfig, LearnerConfig
from expo_ray.files import write_whole
from expo_ray.preflight.estimate import (
    MemoryEstimate,
    completions_per_prompt,
    duration_text,
    engine_memory,
    learner_memory,
    other_memory,
    recomputes,
    sequences_at_once,
    step_duration,
    targets_per_prompt,
)
from expo_ray.preflight.model_folder import ModelShape, model_shape
from expo_ray.rewards.functions import own_functions


@dataclass(frozen=True)
class ActorPlan:
    """One kind of actor."""

    name: str
    count: int
    cpus: float
    """Cores that each keeps busy during its phase."""
    ray_cpus: float
    """CPUs that each asks Ray for: less than `cpus` if actors of different phases take turns on the same cores."""
    gpus: float
    """GPUs of each; one half if an engine and a learner rank share a card."""
    memory: MemoryEstimate


@dataclass(frozen=True)
class BatchPlan:
    """Upper bounds for one step, all ranks together."""

    completions: int
    explanations: int
    samples: int
    tokens: int
    micro_batches_per_rank: int


@dataclass(frozen=True)
class Plan:
    """The whole run."""

    config: Config
    resources: Resources
    shape: ModelShape | None
    actors: list[ActorPlan]
    batch: BatchPlan
    golds: tuple[str, ...] = ()
    """What the check of the gold answers found, a line for each file."""
    gap: str | None = None
    """What this machine leaves open in the isolation of graded code."""
    taken: tuple[str, ...] = ()
    """Which columns a preset took, and which problems were chosen by pass rate."""

    def actor(self, name: str) -> ActorPlan:
        """The row of one kind of actor: rollout, learner, verifier, reward or driver."""
        return next(row for row in self.actors if row.name == name)

    @property
    def context(self) -> int | None:
        """The model's context in tokens; None if it is not known."""
        return self.shape.context if self.shape is not None else None

    @property
    def trains(self) -> bool:
        """Whether there are learners; an evaluation has none."""
        return self.actor("learner").count > 0

    @property
    def max_sequences(self) -> int:
        """How many sequences an engine decodes at once."""
        return sequences_at_once(self.config, self.shape)

    @property
    def learner(self) -> LearnerConfig:
        """The learner's settings with what the plan decides."""
        again = recomputes(self.config, self.shape, self.resources.gpu_memory_gib)
        return replace(self.config.learner, gradient_checkpointing=again)

    @property
    def learner_threads(self) -> int:
        """Threads of a learner rank's libraries: with the optimizer on the host, the cores that there are for each.

        Engines sample in turn with the update, unless `trainer.async_steps`.
        """
        profile, engines = self.config.profile, self.actor("rollout")
        if not (self.config.learner.offload_optimizer and self.gpus):
            return profile.threads_per_actor
        taken = engines.count * engines.cpus if self.config.trainer.async_steps else 0.0
        return max(profile.threads_per_actor, int((self.resources.cores - taken) // self.config.learner.ranks))

    @property
    def cores(self) -> float:
        """Cores asked for. Without GPUs, phases that take turns count once: the largest of them."""
        wanted = {row.name: row.count * row.cpus for row in self.actors}
        if self.gpus:
            return sum(wanted.values())
        if self.config.trainer.async_steps:
            return wanted["learner"] + max(wanted["rollout"], wanted["verifier"], wanted["reward"])
        return max(wanted.values())

    @property
    def gpus(self) -> int:
        """Cards asked for."""
        return math.ceil(sum(row.count * row.gpus for row in self.actors))

    @property
    def colocated(self) -> bool:
        """Whether engines and learner ranks share cards."""
        return self.trains and self.config.cluster.placement == "colocated"

    @property
    def host_memory_gib(self) -> float | None:
        """GiB of host memory over all actors; None if the model is not known."""
        parts = [row.memory.host_gib for row in self.actors]
        if any(part is None for part in parts):
            return None
        return sum(row.count * (part or 0.0) for row, part in zip(self.actors, parts, strict=True))


def make_plan(config: Config, resources: Resources | None = None, training: bool = True) -> Plan:
    """Plans a run for `resources`; by default those of conf/cluster, or this machine's if that says local.

    Raises:
        ConfigError: a local model folder whose config.json cannot be read.
    """
    return plan_for(config, resources or planned_resources(config), model_shape(config.model.path), training)


def planned_resources(config: Config) -> Resources:
    """The resources that conf/cluster states, or this machine's if it says local."""
    return of_cluster(config.cluster) or this_machine()


def plan_for(config: Config, resources: Resources, shape: ModelShape | None, training: bool = True) -> Plan:
    """Plans a run of a model whose shape is already known (None: unknown until it is loaded).

    Without `training`, an evaluation: engines and verifiers alone.
    """
    plan = Plan(config, resources, shape, _actors(config, resources, shape), _batch(config))
    return plan if training else _without_learners(plan)


def _without_learners(plan: Plan) -> Plan:
    def row(actor: ActorPlan) -> ActorPlan:
        if actor.name == "rollout":  # no engine shares its card then, so a half becomes a whole one
            return replace(actor, gpus=math.ceil(actor.gpus))
        return replace(actor, count=0) if actor.name in ("learner", "reward") else actor

    return replace(plan, actors=[row(actor) for actor in plan.actors])


def _actors(config: Config, resources: Resources, shape: ModelShape | None) -> list[ActorPlan]:
    gpu = config.profile.device == "cuda"
    shards = config.rollout.tensor_parallel
    cpus = config.profile.cpus_per_actor
    counts = {"rollout": config.rollout.workers, "learner": config.learner.ranks, "verifier": config.verifier.workers}
    counts["reward"] = config.reward.workers if own_functions(config.reward) else 0
    card = (0.5 if config.cluster.placement == "colocated" else 1) if gpu else 0
    sizes = {
        "rollout": (cpus * shards, shards * card, engine_memory(config, shape, resources)),
        "learner": (cpus, card, learner_memory(config, shape, resources.gpu_memory_gib)),
        "verifier": (float(config.verifier.processes), 0, other_memory("verifier", config)),
        "reward": (1.0, 0, other_memory("reward", config)),
    }
    asked = sum(counts[name] * sizes[name][0] for name in counts)
    # Ray reserves an actor's CPUs for its whole life, also between its phases, so all of them must fit at once.
    share = min(1.0, resources.cores / asked) if asked else 1.0
    rows = [
        ActorPlan(name, counts[name], cores, int(cores * share * 1000) / 1000, cards, memory)
        for name, (cores, cards, memory) in sizes.items()
    ]
    return [*rows, ActorPlan("driver", 1, 0.0, 0.0, 0, other_memory("driver", config))]


def _batch(config: Config) -> BatchPlan:
    rollout, trainer = config.rollout, config.trainer
    completions = trainer.prompts_per_step * completions_per_prompt(config)
    explanations = trainer.prompts_per_step * rollout.explanations_per_prompt
    samples = completions + trainer.prompts_per_step * targets_per_prompt(config)
    length = rollout.max_prompt_tokens + rollout.max_completion_tokens
    tokens = samples * length
    micro_batches = -(-tokens // (config.learner.ranks * max(config.learner.tokens_per_micro_batch, length)))
    return BatchPlan(completions, explanations, samples, tokens, micro_batches)


def plan_text(plan: Plan) -> str:
    """plan.txt: short aligned lines, sizes in GiB."""
    config, there, batch = plan.config, plan.resources, plan.batch
    rollout, learner, trainer, data = config.rollout, config.learner, config.trainer, config.data
    levels = f", levels {data.levels}" if data.levels else ""
    cards = f"{there.gpus} GPUs of {there.gpu_memory_gib:.0f} GiB" if there.gpus else "no GPU"
    cores = placement = ahead = None
    if not plan.gpus:
        turns = "the largest of the phases; rollout, verification and update take turns"
        cores = f"            cores: {'rollout and update run at the same time' if trainer.async_steps else turns}"
    if plan.colocated:
        placement = "colocated: engine and learner rank of a card take turns; the engine sleeps during the update"
    elif plan.gpus and plan.trains:
        placement = "disaggregated: engines and learner ranks have cards of their own"
    if trainer.async_steps:
        ahead = f"samples up to {trainer.async_steps} step(s) ahead, with weights as many updates old"
    lines = [
        f"run         {config.run_name}: {config.algo.name}, {trainer.steps} steps of {trainer.prompts_per_step} "
        f"prompts, seed {config.seed}",
        f"folder      {config.run_dir}",
        f"model       {config.model.path} ({_shape_text(plan.shape)})",
        f"data        {data.name}: {_data_text(data)}{levels}",
        *(f"taken       {taken}" for taken in plan.taken),
        *(f"golds       {found}" for found in plan.golds),
        plan.gap and f"ISOLATION   code that a response gets to run could {plan.gap} (docs/verifier.md)",
        f"resources   {there.where}: {there.cores:g} cores, {there.memory_gib:.1f} GiB memory, {cards}",
        f"profile     {config.profile.name}: rollout {rollout.dtype}, learner {learner.dtype}",
        "",
        "actor       count  cores each  GPUs each  asks Ray for            memory each",
        *(_actor_line(row) for row in plan.actors if row.count or row.name != "reward"),
        "",
        f"asked for   {plan.cores:g} of {there.cores:g} cores, {plan.gpus} of {there.gpus} GPUs, "
        f"{_gib(plan.host_memory_gib)} of {there.memory_gib:.1f} GiB host memory (an estimate)",
        cores,
        placement and f"placement   {placement}",
        "",
        ahead and f"asynchronous {ahead}",
        f"a step      {batch.completions} completions ({trainer.prompts_per_step} prompts x "
        f"{completions_per_prompt(config)} samples), {batch.explanations} explanations",
        f"            {batch.samples} training samples, at most {batch.tokens:,} tokens "
        f"({rollout.max_prompt_tokens} + {rollout.max_completion_tokens} each)",
        f"            {config.algo.updates_per_batch} update(s) on {learner.ranks} rank(s), ZeRO stage "
        f"{learner.zero_stage}, at most {batch.micro_batches_per_rank} micro-batches a rank of "
        f"{learner.tokens_per_micro_batch} tokens",
        f"engines     each decodes up to {plan.max_sequences} sequences at once"
        + ("" if rollout.max_sequences else " (rollout.max_sequences=0: chosen for this run)"),
        *duration_text(config, step_duration(config, plan.shape)),
    ]
    return "".join(f"{line}\n" for line in lines if line is not None)


def _data_text(data: DataConfig) -> str:
    """Where the problems come from, with the share of each source."""
    if not data.sources:
        return data.path or data.hub or "generated"
    total = sum(float(entry.get("weight", 1.0)) for entry in data.sources)
    return ", ".join(
        f"{entry.get('path') or entry.get('hub')} ({float(entry.get('weight', 1.0)) / total:.0%} of the prompts)"
        for entry in data.sources
    )


def write_plan(plan: Plan, folder: Path) -> None:
    """Writes config.yaml (resolved) and plan.txt into a run's folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(plan.config)))
    write_whole(folder / "plan.txt", plan_text(plan))


def _actor_line(row: ActorPlan) -> str:
    asks = f"{row.ray_cpus:g} CPU" + (f", {row.gpus:g} GPU" if row.gpus else "")
    return f"{row.name:<11} {row.count:>5}  {row.cpus:>10g}  {row.gpus:>9g}  {asks:<22}  {row.memory.text()}"


def _shape_text(shape: ModelShape | None) -> str:
    if shape is None:
        return "size unknown before it is loaded"
    millions = shape.parameters / 1e6
    size = f"{millions / 1e3:.2f} B" if millions >= 1000 else f"{millions:.2f} M"
    return f"{size} parameters, context {shape.context}"


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"
