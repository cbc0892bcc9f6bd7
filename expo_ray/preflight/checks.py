"""All checks of a run before it starts anything, and those of an engine's cache and a Ray cluster's nodes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expo_ray.algorithms.pairs import PairStore
from expo_ray.config.errors import ConfigError
from expo_ray.config.model_path import tokenizer_of
from expo_ray.config.resources import GIB, Resources
from expo_ray.config.schema import Config
from expo_ray.data.sources import GENERATED, Problems
from expo_ray.preflight.disk import disk_problems
from expo_ray.preflight.estimate import BYTES
from expo_ray.preflight.fit import misfits
from expo_ray.preflight.inputs import check_hub, check_longest, check_push, fetch_adapter
from expo_ray.preflight.model_files import has_template
from expo_ray.preflight.model_folder import ModelShape
from expo_ray.preflight.placement import Node, placeable
from expo_ray.preflight.plan import Plan, plan_for
from expo_ray.preflight.values import check_config, program_problems
from expo_ray.rewards.functions import check_columns
from expo_ray.verifier import sandbox


@dataclass(frozen=True)
class Checked:
    """A run that passed its checks, with everything that they read, so that nothing is read again."""

    plan: Plan
    """Also holds the model's shape."""
    problems: Problems

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.plan.config


def check_run(config: Config) -> Checked:
    """Checks a training run: its values, its files and, unless `dry_run`, what a real start needs.

    Raises:
        InputError: the first thing that is wrong, in one sentence with the remedy.
    """
    if not config.dry_run:
        fetch_adapter(config)
    plan = check_config(config)
    data = config.data
    problems = Problems(data, config.seed, config.verifier)
    generated = data.name in GENERATED and not (data.path or data.sources)
    if not (generated or data.path or data.hub or data.sources):
        raise ConfigError(f"data={data.name} needs data.path=FILE, a file, folder or glob of records")
    # Also the held-out part: a fault there would end the run at its first evaluation.
    for held_out in (False, True):
        own = not generated or (held_out and bool(data.eval_path or data.eval_sources))
        if own and problems.local(held_out):
            check_longest(problems.held_out if held_out else problems.training, plan)
    if data.name == "reasoning_gym" or (generated and data.pass_rates is not None):
        _ = problems.training, problems.held_out  # made now: what cannot be is refused before anything starts
    if config.algo.dpo_pairs_path is not None:  # whether they fit is known once there are prompts (driver/run.py)
        PairStore().read(Path(config.algo.dpo_pairs_path))
    if not config.dry_run:
        check_start(plan)
        check_hub(config)
        check_push(config)
    check_columns(config, lambda: problems.training)
    if data.verifier_key and problems.local(False):
        for sentence in program_problems(config, {problem.task for problem in problems.training}):
            raise ConfigError(sentence)
    golds, taken = tuple(problems.golds), tuple(problems.taken)
    return Checked(replace(plan, golds=golds, taken=taken, gap=sandbox.gap()), problems)


def check_start(plan: Plan) -> None:
    """Checks what only a real start needs: a chat template if prompts use one, and room on disk.

    Raises:
        ConfigError: in one sentence with the remedy.
    """
    config, folder = plan.config, Path(tokenizer_of(plan.config.model.path))
    if config.model.prompt_style == "chat" and folder.is_dir() and not has_template(folder):
        raise ConfigError(
            f"model.prompt_style=chat, but model.path={folder} has no chat template (chat_template.jinja, or "
            "chat_template in tokenizer_config.json): use model.prompt_style=base"
        )
    for problem in disk_problems(config, plan.shape):
        raise ConfigError(problem)


def check_context(plan: Plan, context_tokens: int) -> None:
    """Checks the longest sequence that will be sampled against the model's context and an engine's cache.

    Args:
        plan: the run's plan.
        context_tokens: longest prompt plus longest completion (expo_ray.prompts.loading.longest_sequence).

    Raises:
        ConfigError: in one sentence with the remedy.
    """
    for problem in _context_problems(plan.config, context_tokens, plan.shape):
        raise ConfigError(problem)


def check_placement(plan: Plan, ray_nodes: Sequence[Mapping[str, Any]]) -> Plan:
    """Checks that the nodes of a running Ray cluster can hold every actor, so that none waits forever for a place.

    Args:
        plan: the run's plan.
        ray_nodes: `ray.nodes()`; nodes that are not alive do not count. What other jobs use now is not considered.

    Returns:
        The plan for that cluster; its `ray_cpus` are small enough to be placed.

    Raises:
        ConfigError: what cannot be placed, in one sentence with the remedy.
    """
    config = plan.config
    alive = [dict(node["Resources"]) for node in ray_nodes if node.get("Alive", node.get("alive"))]
    if not alive:
        raise ConfigError(f"cluster.address={config.cluster.address}: no node of the Ray cluster is alive: start one")
    nodes = [_node(resources) for resources in alive]
    plan = plan_for(config, _totals(config, nodes), plan.shape, plan.trains)
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
    # expo_ray.rollout.engine gives a CPU engine whole GiB; on a GPU vLLM measures how much memory is left.
    if config.profile.device == "cpu":
        cache = max(1, round(config.rollout.kv_cache_gib))
        needed = tokens * shape.kv_bytes_per_token(BYTES[config.rollout.dtype]) / GIB
        if needed > cache:
            yield (
                f"rollout.kv_cache_gib={config.rollout.kv_cache_gib:g} cannot hold one sequence of {tokens} tokens, "
                f"which takes {needed:.1f} GiB: use rollout.kv_cache_gib={int(needed) + 1}"
            )


def _node(resources: Mapping[str, float]) -> Node:
    # Ray reserves a part of the host memory for its object store and lists the two separately.
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
