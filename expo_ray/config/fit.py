"""Does a plan fit the model and what there is? A sentence for each thing that does not, with the override that does."""

from collections.abc import Iterator

from expo_ray.config.plan import Plan
from expo_ray.config.schema import Config


def too_long(plan: Plan) -> Iterator[str]:
    """A sentence where prompt and completion together are longer than the model's context."""
    rollout, shape = plan.config.rollout, plan.shape
    length = rollout.max_prompt_tokens + rollout.max_completion_tokens
    if shape is None or not shape.context or length <= shape.context:
        return
    room = shape.context - rollout.max_completion_tokens
    half = shape.context // 2
    remedy = f"rollout.max_prompt_tokens={room if room > 0 else half}"
    if room <= 0:
        remedy += f" rollout.max_completion_tokens={half}"
    yield (
        f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} and "
        f"rollout.max_completion_tokens={rollout.max_completion_tokens} make {length} tokens, but the context of "
        f"{plan.config.model.path} is {shape.context}: use {remedy}"
    )


def misfits(plan: Plan) -> Iterator[str]:
    """A sentence for each resource that is asked for and not there: GPUs, cores, memory."""
    yield from _too_many(plan)
    yield from _too_large(plan)


def _too_many(plan: Plan) -> Iterator[str]:
    config, there = plan.config, plan.resources
    shards = config.rollout.tensor_parallel
    if plan.gpus > there.gpus:
        if there.gpus >= 1 + shards:
            workers = max(1, there.gpus // (2 * shards))
            remedy = f"rollout.workers={workers} learner.ranks={there.gpus - workers * shards}"
        else:
            remedy = "rollout.tensor_parallel=1" if there.gpus >= 2 else "profile=cpu"
        yield (
            f"rollout.workers={config.rollout.workers} and learner.ranks={config.learner.ranks} ask for {plan.gpus} "
            f"GPUs, {there.where} has {there.gpus} today: use {remedy}"
        )
    for row, key in ((plan.actor("rollout"), "rollout.workers"), (plan.actor("learner"), "learner.ranks")):
        if row.count * row.cpus > there.cores:
            fits = int(there.cores / row.cpus)
            remedy = f"{key}={fits}" if fits >= 1 else f"profile.cpus_per_actor={there.cores:g}"
            yield (
                f"{key}={row.count} asks for {row.count * row.cpus:g} cores, {there.where} has {there.cores:g} today: "
                f"use {remedy}"
            )


def _too_large(plan: Plan) -> Iterator[str]:
    config, there = plan.config, plan.resources
    sure = sum(row.count * row.memory.sure(row.memory.host) for row in plan.actors)
    if sure > there.memory_gib:
        yield (
            f"model.path={config.model.path} needs about {sure:.0f} GiB of host memory in this layout, {there.where} "
            f"has {there.memory_gib:.0f}: use a smaller model.path" + _fewer(config)
        )
    if config.profile.device != "cuda":
        return
    learner = plan.actor("learner").memory
    if (needed := learner.sure(learner.gpu)) > there.gpu_memory_gib:
        yield (
            f"a learner rank needs about {needed:.0f} GiB of GPU memory, a card of {there.where} has "
            f"{there.gpu_memory_gib:.0f}: use learner.zero_stage=3, more learner.ranks, learner.offload_optimizer=true "
            "or model.lora.rank=32"
        )
    weights = plan.actor("rollout").memory.gpu.get("weights") or 0.0
    budget = config.rollout.gpu_memory_utilization * there.gpu_memory_gib
    if weights > 0.95 * budget:
        yield (
            f"an engine's weights take {weights:.0f} of the {budget:.0f} GiB that rollout.gpu_memory_utilization="
            f"{config.rollout.gpu_memory_utilization} gives it: use rollout.tensor_parallel="
            f"{2 * config.rollout.tensor_parallel}"
        )


def _fewer(config: Config) -> str:
    if config.profile.device == "cpu" and config.learner.ranks > 1:
        return f", learner.zero_stage=3 or learner.ranks={config.learner.ranks - 1}"
    return " or profile=gpu" if config.profile.device == "cpu" else ""
