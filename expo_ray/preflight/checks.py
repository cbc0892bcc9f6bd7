"""What a run asks before it starts anything: the disk, the engines' caches, and on a Ray cluster the placement."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError
from expo_ray.config.resources import GIB, Resources
from expo_ray.config.schema import Config
from expo_ray.preflight.disk import disk_problems
from expo_ray.preflight.estimate import BYTES
from expo_ray.preflight.fit import misfits
from expo_ray.preflight.model_files import has_template
from expo_ray.preflight.model_folder import ModelShape, model_shape
from expo_ray.preflight.placement import Node, placeable
from expo_ray.preflight.plan import Plan, make_plan, without_learners


def preflight(config: Config) -> None:
    """Checks what a training run that really starts needs: a chat template where prompts use one, room on disk.

    Values, model folder, tokenizer and this machine's resources are expo_ray.preflight.values's.

    Raises:
        ConfigError: in one sentence with the remedy.
    """
    folder = Path(config.model.path)
    if config.model.prompt_style == "chat" and folder.is_dir() and not has_template(folder):
        raise ConfigError(
            f"model.prompt_style=chat, but model.path={folder} has no chat template (chat_template.jinja, or "
            "chat_template in tokenizer_config.json): use model.prompt_style=base"
        )
    for problem in disk_problems(config, model_shape(config.model.path)):
        raise ConfigError(problem)


def check_context(config: Config, context_tokens: int) -> None:
    """Checks the longest sequence that will be sampled against the model's context and an engine's cache.

    Args:
        config: the run's configuration.
        context_tokens: longest prompt plus longest completion (expo_ray.prompts.loading.longest_sequence).

    Raises:
        ConfigError: in one sentence with the remedy.
    """
    for problem in _context_problems(config, context_tokens, model_shape(config.model.path)):
        raise ConfigError(problem)


def check_placement(config: Config, ray_nodes: Sequence[Mapping[str, Any]], training: bool = True) -> Plan:
    """Checks that the nodes of a running Ray cluster can hold every actor, so that none waits for a place for ever.

    Args:
        config: the run's configuration.
        ray_nodes: `ray.nodes()`; nodes that are not alive do not count. What other jobs use now is not looked at.
        training: False for an evaluation, which starts no learner.

    Returns:
        The plan for that cluster; its `ray_cpus` are small enough to be placed.

    Raises:
        ConfigError: what cannot be placed, in one sentence with the remedy.
    """
    alive = [dict(node["Resources"]) for node in ray_nodes if node.get("Alive", node.get("alive"))]
    if not alive:
        raise ConfigError(f"cluster.address={config.cluster.address}: no node of the Ray cluster is alive: start one")
    nodes = [_node(resources) for resources in alive]
    plan = make_plan(config, _totals(config, nodes))
    plan = plan if training else without_learners(plan)
    for problem in misfits(plan, nodes):
        raise ConfigError(problem)
    return placeable(plan, nodes)


def _context_problems(config: Config, tokens: int, shape: ModelShape | None) -> Iterator[str]:
    if shape is None:
        return
    if shape.context and tokens > shape.context:
        room = shape.context - (tokens - config.rollout.max_completion_tokens)
        remedy = f"rollout.max_completion_tokens={room}" if room > 0 else "a smaller rollout.max_prompt_tokens"
        yield (
            f"the longest prompt and rollout.max_completion_tokens={config.rollout.max_completion_tokens} make "
            f"{tokens} tokens, but the context of {config.model.path} is {shape.context}: use {remedy}"
        )
    # What expo_ray.rollout.engine gives an engine on CPU; on a card vLLM measures what is left.
    if config.profile.device == "cpu":
        cache = max(1, round(config.rollout.kv_cache_gib))
        needed = tokens * shape.kv_bytes_per_token(BYTES[config.rollout.dtype]) / GIB
        if needed > cache:
            yield (
                f"rollout.kv_cache_gib={config.rollout.kv_cache_gib:g} cannot hold one sequence of {tokens} tokens, "
                f"which takes {needed:.1f} GiB: use rollout.kv_cache_gib={int(needed) + 1}"
            )


def _node(resources: Mapping[str, float]) -> Node:
    """Ray keeps a part of memory for its object store; both are bytes of the same memory."""
    memory = (resources.get("memory", 0.0) + resources.get("object_store_memory", 0.0)) / GIB
    own = ("memory", "object_store_memory")
    named = {name: value for name, value in resources.items() if name not in own and not name.startswith("node:")}
    return {"CPU": 0.0, "GPU": 0.0} | named | {"memory": memory}


def _totals(config: Config, nodes: Sequence[Node]) -> Resources:
    total = {name: sum(node[name] for node in nodes) for name in ("CPU", "GPU", "memory")}
    return Resources(
        where="the Ray cluster",
        nodes=len(nodes),
        cores=total["CPU"],
        memory_gib=total["memory"],
        gpus=int(total["GPU"]),
        gpu_memory_gib=config.cluster.gpu_memory_gib,
    )
