"""Checks that a plan fits the model and the resources, and searches for overrides that would make it fit."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

from expo_ray.config.resources import RESOURCE_KEYS
from expo_ray.preflight.estimate import asleep_gib, resting_gib
from expo_ray.preflight.model_folder import KNOWN, model_shape
from expo_ray.preflight.placement import Node, alike_nodes, placeable, placement_problem
from expo_ray.preflight.plan import Plan, plan_for

Values = Mapping[str, Any]
"""Dotted key -> new value."""
Knobs = list[list[Values]]
MOST = 3
"""Most remedies named in one sentence, and most keys changed together."""
SMALLEST = min(KNOWN, key=lambda name: KNOWN[name].parameters)


def changed(plan: Plan, values: Values) -> Plan:
    """Plans the same run with other values on the same resources."""
    config = copy.deepcopy(plan.config)
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node: Any = config
        for name in parents:
            node = getattr(node, name)
        setattr(node, leaf, value)
    shape = model_shape(config.model.path) if "model.path" in values else plan.shape
    return plan_for(config, plan.resources, shape, plan.trains)


def remedies(plan: Plan, knobs: Knobs, fits: Callable[[Plan], bool]) -> list[str]:
    """Searches for overrides that make a plan fit: one change, or else two or three together.

    Args:
        plan: the plan that does not fit.
        knobs: values to try of each kind of change, the mildest first.
        fits: whether a changed plan fits.
    """

    def works(values: Values) -> bool:
        return fits(changed(plan, values))

    single = [first for knob in knobs if (first := next(filter(works, knob), None)) is not None]
    if single:
        return [_text(values) for values in single[:MOST]]
    strongest = [knob[-1] for knob in knobs if knob]
    for chosen in chain.from_iterable(combinations(strongest, size) for size in range(2, MOST + 1)):
        together = {key: value for values in chosen for key, value in values.items()}
        if len(together) == sum(map(len, chosen)) and works(together):  # no key is set twice
            return [_text(together)]
    return []


def largest_model(plan: Plan, fits: Callable[[Plan], bool]) -> str | None:
    """The largest known model that fits in the same layout and is smaller than the plan's; None without one."""
    smaller = [name for name in KNOWN if plan.shape is None or KNOWN[name].parameters < plan.shape.parameters]
    ordered = sorted(smaller, key=lambda name: KNOWN[name].parameters, reverse=True)
    return next((name for name in ordered if fits(changed(plan, {"model.path": name}))), None)


def _text(values: Values) -> str:
    def written(value: Any) -> str:
        return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')

    return " ".join(f"{key}={written(value)}" for key, value in values.items())


def _lower(key: str, value: int) -> list[Values]:
    """An integer key's lower values down to 1, the nearest first."""
    return [{key: smaller} for smaller in range(value - 1, 0, -1)]


@dataclass(frozen=True)
class Lack:
    """One thing that does not fit, without a remedy."""

    kind: str
    sentence: str


def too_long(plan: Plan) -> Iterator[str]:
    """Yields a sentence if prompt and completion together are longer than the model's context."""
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


def misfits(plan: Plan, nodes: Sequence[Node] | None = None) -> Iterator[str]:
    """Yields a sentence for each resource that is missing: GPUs, cores, memory, a place on a node.

    Args:
        plan: the run's plan.
        nodes: resources of each node; None: the plan's resources, divided evenly.
    """
    found = list(_lacks(plan, nodes))
    if not found:
        return

    def fits(other: Plan) -> bool:
        return not any(_lacks(other, nodes))

    # A remedy must cure everything that is missing: fixing one thing only would lead to the next refusal.
    knobs = [knob for lack in found for knob in _knobs(plan, lack.kind)]
    helps = remedies(plan, [knob for i, knob in enumerate(knobs) if knob not in knobs[:i]], fits)
    for lack in found:
        yield f"{lack.sentence}: {_remedy(plan, lack, helps, fits)}"


def _lacks(plan: Plan, nodes: Sequence[Node] | None) -> Iterator[Lack]:
    short = [*_too_many(plan), *_too_large(plan)]
    yield from short
    nodes = alike_nodes(plan.resources) if nodes is None else nodes
    # If totals are too small, that is the message; placement matters only when they suffice.
    if not short and (problem := placement_problem(placeable(plan, nodes), nodes)):
        yield Lack("place", problem)


def _too_many(plan: Plan) -> Iterator[Lack]:
    config, there = plan.config, plan.resources
    workers, ranks = f"rollout.workers={config.rollout.workers}", f"learner.ranks={config.learner.ranks}"
    if plan.gpus > there.gpus:
        asked = f"{workers} and {ranks} ask for" if plan.trains else f"{workers} asks for"
        yield Lack("GPUs", f"{asked} {plan.gpus} GPUs, {there.where} has {there.gpus} today")
    cores = [row.count * row.cpus for row in (plan.actor("rollout"), plan.actor("learner"))]
    has = f"{there.where} has {there.cores:g} today"
    for setting, wanted in zip((workers, ranks), cores, strict=True):
        if wanted > there.cores:
            yield Lack(setting.partition("=")[0], f"{setting} asks for {wanted:g} cores, {has}")
    if config.trainer.async_steps and plan.trains and not plan.gpus and sum(cores) > there.cores:
        yield Lack(
            "at once",
            f"trainer.async_steps={config.trainer.async_steps} runs {workers} and {ranks} at the same time, which asks "
            f"for {sum(cores):g} cores, {has}",
        )


def _too_large(plan: Plan) -> Iterator[Lack]:
    config, there = plan.config, plan.resources
    sure = sum(row.count * row.memory.sure(row.memory.host) for row in plan.actors)
    if sure > there.memory_gib:
        yield Lack(
            "host memory",
            f"model.path={config.model.path} needs about {_gib(sure)} GiB of host memory in this layout, {there.where} "
            f"has {_gib(there.memory_gib)}",
        )
    card = there.gpu_memory_gib
    if config.profile.device != "cuda" or not card:
        return
    has = f"a card of {there.where} has {card:.0f}"
    share = f"rollout.gpu_memory_utilization={config.rollout.gpu_memory_utilization}"
    budget = config.rollout.gpu_memory_utilization * card
    learner, asleep = plan.actor("learner").memory, asleep_gib(config) if plan.colocated else 0.0
    if plan.trains and (needed := learner.sure(learner.gpu) + asleep) > card:
        yield Lack("learner's card", f"a learner rank needs about {needed:.0f} GiB of GPU memory, {has}")
    resting = resting_gib(config, learner)
    if plan.colocated and resting + budget + asleep > card:
        yield Lack(
            "shared card",
            f"cluster.placement=colocated: besides the {resting:.0f} GiB that a learner rank keeps while its engine "
            f"samples, {share} asks for {budget:.0f} GiB and {asleep:.1f} around them, {has}",
        )
    weights = plan.actor("rollout").memory.gpu.get("weights") or 0.0
    if weights > 0.95 * budget:
        yield Lack(
            "engine's card", f"an engine's weights take {weights:.0f} of the {budget:.0f} GiB that {share} gives it"
        )


def _remedy(plan: Plan, lack: Lack, found: list[str], fits: Callable[[Plan], bool]) -> str:
    if lack.sentence.startswith("cluster.") and "_resource=" in lack.sentence:
        resource = lack.sentence.partition("=")[2].partition(":")[0]
        started = f"start a node with ray start --resources='{{\"{resource}\": 1}}'"
        if plan.config.cluster.address is None:
            started = "join a cluster whose nodes offer it by cluster.address"
        return f"{started}, or use {' or '.join(found)}" if found else started
    if found:
        return f"use {' or '.join(found)}"
    if lack.kind in ("host memory", "learner's card", "engine's card"):
        name = largest_model(plan, fits)
        if name is not None:
            return f"use a smaller model.path, {name} at most"
        return f"even {SMALLEST} does not fit there, use a smaller model.path or a larger machine"
    if lack.kind == "GPUs" and plan.resources.gpus < 1 + plan.trains:
        return "use profile=cpu"
    return "use a cluster with more or larger nodes"


def _knobs(plan: Plan, kind: str) -> Knobs:
    """Changes worth trying for each kind of lack, the least costly first."""
    config, there = plan.config, plan.resources
    rollout, learner = config.rollout, config.learner

    def if_not(already: object, change: Values) -> Knobs:
        return [] if already else [[change]]

    workers, ranks = _lower("rollout.workers", rollout.workers), _lower("learner.ranks", learner.ranks)
    busiest = max(rollout.workers * rollout.tensor_parallel, learner.ranks)
    fewer_cpus: list[Values] = [{"profile.cpus_per_actor": int(100 * there.cores / busiest) / 100}]
    zero = if_not(learner.zero_stage == 3, {"learner.zero_stage": 3})
    on_host: dict[str, Any] = {"learner.offload_optimizer": True}
    on_host |= {"learner.offload_between_updates": False} if learner.offload_between_updates else {}
    offload = if_not(learner.offload_optimizer or not learner.zero_stage, on_host)
    moves = if_not(
        learner.offload_optimizer or learner.zero_stage not in (1, 2), {"learner.offload_between_updates": True}
    )
    adapters = if_not(config.model.lora.rank, {"model.lora.rank": 32})
    cache = if_not(rollout.kv_cache_gib <= 1, {"rollout.kv_cache_gib": 1.0})
    match kind:
        case "rollout.workers":
            return [workers, fewer_cpus]
        case "learner.ranks":
            return [ranks, fewer_cpus]
        case "at once":
            return [ranks, workers, [{"trainer.async_steps": 0}]]
        case "GPUs":
            single: list[Values] = [{"rollout.tensor_parallel": 1, **layout} for layout in _layouts(plan, 1)]
            return [_layouts(plan), *([single] if rollout.tensor_parallel > 1 else []), _shared(plan)]
        case "host memory":
            waits = if_not(not config.trainer.checkpoint_async, {"trainer.checkpoint_async": False})
            device = if_not(not learner.offload_optimizer, {"learner.offload_optimizer": False})
            stays = if_not(not learner.offload_between_updates, {"learner.offload_between_updates": False})
            logits: Knobs = [[{"learner.logits_chunk_tokens": 64}]]
            return [*waits, *stays, *zero, ranks, workers, *cache, *device, *logits, *adapters]
        case "learner's card":
            more: list[Values] = [{"learner.ranks": learner.ranks + n} for n in range(1, there.gpus - plan.gpus + 1)]
            return [*zero, *offload, more, *adapters, [{"learner.logits_chunk_tokens": 256}]]
        case "shared card":
            smaller: list[Values] = [{"rollout.gpu_memory_utilization": n / 20} for n in range(19, 1, -1)]
            return [smaller, *moves, *offload, *zero, *adapters, [{"cluster.placement": "disaggregated"}]]
        case "engine's card":
            wider: list[Values] = [{"rollout.tensor_parallel": n} for n in (2, 4, 8) if _divides(plan, n)]
            return [wider, [{"rollout.gpu_memory_utilization": 0.95}], workers]
        case _:
            anywhere: Knobs = [[{f"cluster.{key}": None}] for key in RESOURCE_KEYS if getattr(config.cluster, key)]
            shards: list[Values] = [{"rollout.tensor_parallel": n} for n in (8, 4, 2, 1) if n < rollout.tensor_parallel]
            return [*anywhere, shards, workers, ranks, *cache, *zero]


def _layouts(plan: Plan, shards: int | None = None) -> list[Values]:
    """Layouts that use every GPU, the most even split first; without learners, engines only."""
    shards, gpus = shards or plan.config.rollout.tensor_parallel, plan.resources.gpus
    if not plan.trains:
        return [{"rollout.workers": gpus // shards}] if gpus >= shards else []
    counts = sorted(range(1, (gpus - 1) // shards + 1), key=lambda workers: abs(2 * workers * shards - gpus))
    return [{"rollout.workers": workers, "learner.ranks": gpus - workers * shards} for workers in counts]


def _shared(plan: Plan) -> list[Values]:
    """Layouts in which an engine and a rank share the only card."""
    if not plan.trains or plan.resources.gpus != 1 or plan.config.trainer.async_steps:
        return []
    layout = {"rollout.workers": 1, "learner.ranks": 1, "rollout.tensor_parallel": 1}
    budgets = [tenths / 20 for tenths in range(17, 1, -1)]
    return [{"cluster.placement": "colocated", "rollout.gpu_memory_utilization": b, **layout} for b in budgets]


def _divides(plan: Plan, shards: int) -> bool:
    larger = shards > plan.config.rollout.tensor_parallel
    return larger and (plan.shape is None or plan.shape.heads % shards == 0)


def _gib(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
