"""Costs of a step on many GPUs, from the model's size and the card's data sheet. Nothing here is measured on a GPU.

Decoding, updates and properties follow the assumptions of `expo_ray.preflight.estimate`;
what lies between cards is added.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.scaling.events import EngineCosts, Sampled, Simulation, StepCosts, StepTimes, StepWork, seconds_per_step
from expo_ray.config.compose import compose_config
from expo_ray.config.schema import Config
from expo_ray.preflight.estimate import (
    BANDWIDTH_SHARE,
    BYTES_PER_VALUE,
    DECODE_OVERHEAD_S,
    FREE_SAMPLES_MEASURED,
    UPDATE_SHARE,
)
from expo_ray.preflight.model_folder import ModelShape, model_shape

GPUS_PER_NODE = 8
NVLINK_BYTES_PER_S = 450e9
"""One way, inside a node of H100 SXM (NVIDIA's data sheet: 900 GB/s both ways together)."""
NETWORK_BYTES_PER_S = 50e9
"""A 400 Gb/s network card for each GPU."""
LINK_SHARE = 0.7
"""Of a link's rate, in collectives."""
SYNC_FIXED_S = 0.2
"""Calls, loading and the proof of one sync."""
VERIFY_ITEM_S = 0.010
"""One answer in one process: the slowest first pass of docs/verifier.md, on a starved machine."""
VERIFY_PROCESSES_PER_NODE = 16
DRIVER_S_PER_COMPLETION = 50e-6
"""Batch and records, on the driver alone: 14 ms for 320 completions in a two-core run."""
MEDIAN_TOKENS, SPREAD = 350.0, 0.6
"""Lengths of completions: log-normal, cut at the recipe's limit."""
PROMPT_TOKENS = 150
STEPS = 4
PARTS = (
    "waiting for the slowest engine",
    "decoding",
    "verification",
    "properties",
    "update",
    "collectives",
    "sync",
    "driver",
)


@dataclass(frozen=True)
class Cluster:
    """How many GPUs do what, one engine or rank a GPU, and the batch that they share."""

    engines: int
    ranks: int
    prompts: int

    @property
    def gpus(self) -> int:
        """Engines and ranks together."""
        return self.engines + self.ranks


@dataclass(frozen=True)
class Point:
    """A predicted step."""

    cluster: Cluster
    async_steps: int
    seconds: float
    completions: int
    parts: dict[str, float]
    """Seconds by part; in an asynchronous run sampling and learning overlap, and their sum is more than a step."""

    @property
    def rate(self) -> float:
        """Free completions a second."""
        return self.completions / self.seconds


def recipe(name: str) -> tuple[Config, ModelShape]:
    """A recipe's configuration on H100 cards, and its model's dimensions. ValueError: the model's size is not known."""
    config = compose_config([f"experiment={name}", "cluster=8xh100"])
    shape = model_shape(config.model.path)
    if shape is None:
        raise ValueError(f"{name}: the size of {config.model.path} is not known")
    return config, shape


def link(gpus: int) -> float:
    """Bytes a second of the slowest link that so many GPUs need."""
    return (NVLINK_BYTES_PER_S if gpus <= GPUS_PER_NODE else NETWORK_BYTES_PER_S) * LINK_SHARE


def collectives(config: Config, shape: ModelShape, ranks: int) -> float:
    """Seconds of an update's ring collectives: gradients reduced, weights gathered, in bfloat16."""
    trained = shape.lora_parameters(config.model.lora.rank) if config.model.lora.rank else shape.parameters
    return 2 * trained * BYTES_PER_VALUE * (ranks - 1) / ranks / link(ranks)


def step_costs(config: Config, shape: ModelShape, cluster: Cluster, async_steps: int = 0) -> StepCosts:
    """What a step costs on a cluster."""
    bandwidth = config.cluster.gpu_terabytes_per_s * 1e12 * BANDWIDTH_SHARE
    speed = config.cluster.gpu_tflops * 1e12 * UPDATE_SHARE
    weights = shape.parameters * BYTES_PER_VALUE
    passes = 2 + (2 if config.model.lora.rank else 4) + (2 if config.learner.gradient_checkpointing else 0)
    between = collectives(config, shape, cluster.ranks)
    nodes = -(-cluster.gpus // GPUS_PER_NODE)
    return StepCosts(
        engine=EngineCosts(
            per_iteration=weights / bandwidth + DECODE_OVERHEAD_S,
            per_context_token=shape.kv_bytes_per_token(BYTES_PER_VALUE) / bandwidth,
            per_prompt_token=2 * shape.parameters / speed,
        ),
        max_sequences=config.rollout.max_sequences,
        ranks=cluster.ranks,
        update=lambda tokens: tokens * passes * shape.parameters / speed + between,
        score=lambda tokens: tokens * 2 * shape.parameters / speed,
        # A pipelined broadcast: every engine receives while it passes on.
        sync=weights / link(cluster.gpus) + SYNC_FIXED_S,
        verify_item=VERIFY_ITEM_S,
        verify_processes=nodes * VERIFY_PROCESSES_PER_NODE,
        rest=DRIVER_S_PER_COMPLETION * cluster.prompts * _per_prompt(config),
        async_steps=async_steps,
    )


def step_work(config: Config, cluster: Cluster, number: int, lengths: Sequence[int] = ()) -> StepWork:
    """A step's work: lengths drawn from `lengths`, or from the assumed distribution."""
    source = random.Random(f"scaling/{number}")
    limit = config.rollout.max_completion_tokens

    def tokens() -> int:
        drawn = source.choice(lengths) if lengths else round(MEDIAN_TOKENS * source.lognormvariate(0.0, SPREAD))
        return max(1, min(limit, drawn))

    prompts = [[Sampled(PROMPT_TOKENS, tokens()) for _ in range(_per_prompt(config))] for _ in range(cluster.prompts)]
    shares = [prompts[engine :: cluster.engines] for engine in range(min(cluster.engines, cluster.prompts))]
    trained = tuple(one.prompt_tokens + one.tokens for prompt in prompts for one in prompt)
    every = config.algo.properties_every
    scored: tuple[int, ...] = ()
    if every and number % every == 0:
        # Explanations, gold solution, free samples: each, and the answer behind its chain.
        each = (
            config.rollout.explanations_per_prompt + 1 + min(FREE_SAMPLES_MEASURED, config.rollout.samples_per_prompt)
        )
        scored = (sum(trained) // len(trained),) * (2 * each * cluster.prompts)
    return StepWork(tuple(tuple(one for prompt in share for one in prompt) for share in shares), trained, scored)


def predict(
    config: Config, shape: ModelShape, cluster: Cluster, async_steps: int = 0, lengths: Sequence[int] = ()
) -> Point:
    """A step on a cluster: the mean of a few, the first left out."""
    costs = step_costs(config, shape, cluster, async_steps)
    times = Simulation(costs, [step_work(config, cluster, number, lengths) for number in range(STEPS + 1)]).run()
    completions = cluster.prompts * config.rollout.samples_per_prompt
    between = collectives(config, shape, cluster.ranks)
    return Point(cluster, async_steps, seconds_per_step(times), completions, _parts(times[1:], costs, between))


def split_in_half(gpus: int, prompts: int) -> Cluster:
    """Half of the GPUs are engines, half are ranks, as conf/cluster has it."""
    return Cluster(gpus // 2, gpus - gpus // 2, prompts)


def limit(base: Point, point: Point) -> tuple[str, float]:
    """What keeps a synchronous step from scaling: the part that lost most against `base`, and its share of the step.

    Perfect scaling keeps the GPU seconds that a completion costs, part by part.
    """
    perfect = base.cluster.gpus / base.completions * point.completions / point.cluster.gpus
    lost = {name: point.parts[name] - base.parts[name] * perfect for name in PARTS}
    worst = max(lost, key=lost.__getitem__)
    return worst, lost[worst] / point.seconds


def _per_prompt(config: Config) -> int:
    return config.rollout.samples_per_prompt + config.rollout.explanations_per_prompt


def _parts(times: Sequence[StepTimes], costs: StepCosts, between: float) -> dict[str, float]:
    def mean(name: str) -> float:
        return sum(getattr(step, name) for step in times) / len(times)

    values = (
        mean("generate") - mean("engine_busy"),
        mean("engine_busy"),
        mean("verify"),
        mean("properties"),
        mean("update") - between,
        between,
        mean("sync"),
        costs.rest,
    )
    return dict(zip(PARTS, values, strict=True))
