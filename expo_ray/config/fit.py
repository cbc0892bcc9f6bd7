"""Does a plan fit what there is? One sentence for each thing that does not, with the override that does."""

from collections.abc import Iterator

from expo_ray.config.plan import Plan
from expo_ray.config.schema import Config


def misfits(plan: Plan) -> Iterator[str]:
    """A sentence for each thing that is asked for and not there: context, GPUs, cores, memory."""
    config, there, rollout = plan.config, plan.resources, plan.config.rollout
    length = rollout.max_prompt_tokens + rollout.max_completion_tokens
    if plan.shape and plan.shape.context and length > plan.shape.context:
        room = plan.shape.context - rollout.max_completion_tokens
        remedy = (
            f"rollout.max_prompt_tokens={room}"
            if room > 0
            else f"rollout.max_prompt_tokens={plan.shape.context // 2} "
            f"rollout.max_completion_tokens={plan.shape.context // 2}"
        )
        yield (
            f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} and "
            f"rollout.max_completion_tokens={rollout.max_completion_tokens} make {length} tokens, but the context of "
            f"{config.model.path} is {plan.shape.context}: use {remedy}"
        )
    yield from _too_many(plan)
    yield from _too_large(plan)
    if config.profile.device == "cpu" and there.gpus == 0 and plan.gpus:
        yield f"{there.where} has no GPU: use profile=cpu"


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
