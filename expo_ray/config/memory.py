"""Memory of each kind of actor, estimated from the model's dimensions. Rough by design: the plan says so.

Optimizer and sharding follow DeepSpeed's ZeRO (stage 1 shards the optimizer, 2 gradients too, 3 weights too).
"""

from dataclasses import dataclass, field

from expo_ray.config.model_shape import ModelShape
from expo_ray.config.resources import GIB, Resources
from expo_ray.config.schema import Config

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Resident size of a process with its libraries loaded and no model: see tests/integration for what they really take.
PROCESS_GIB = {"rollout": 1.3, "learner": 0.9, "verifier": 0.3, "driver": 0.9}
Parts = dict[str, float | None]
PREFERENCE_ALGORITHMS = ("exp_dpo", "dpo_gt")


@dataclass(frozen=True)
class MemoryEstimate:
    """GiB of one actor by what takes it; a part that is None is not known before the model is loaded."""

    host: Parts = field(default_factory=dict)
    gpu: Parts = field(default_factory=dict)
    rough: frozenset[str] = frozenset({"activations"})
    """Parts that the length of what is sampled decides; they never refuse a run."""

    @property
    def host_gib(self) -> float | None:
        """Sum of the host parts; None where one is not known."""
        return _sum(self.host)

    @property
    def gpu_gib(self) -> float | None:
        """Sum of the parts on a card; None where one is not known."""
        return _sum(self.gpu)

    def sure(self, parts: Parts) -> float:
        """Sum of the known parts without the rough ones."""
        return sum(value for name, value in parts.items() if value is not None and name not in self.rough)

    def text(self) -> str:
        """One line: totals and parts."""
        places = [(name, parts) for name, parts in (("GPU", self.gpu), ("host", self.host)) if parts]
        return "; ".join(f"{name} {_gib(_sum(parts))} GiB ({_parts(parts)})" for name, parts in places)


def engine_memory(config: Config, shape: ModelShape | None, resources: Resources) -> MemoryEstimate:
    """One vLLM engine (all of its shards' host memory, one shard's card)."""
    gpu = config.profile.device == "cuda"
    process: Parts = {"process": 4.0 if gpu else PROCESS_GIB["rollout"]}
    size = BYTES[config.rollout.dtype]
    weights = None if shape is None else shape.parameters * size / GIB
    if not gpu:
        # The CPU engine keeps each linear weight a second time, packed for oneDNN.
        packed = None if shape is None else shape.layers * sum(i * o for i, o in shape.linear_shapes) * size / GIB
        model: Parts = {"weights": weights, "packed weights": packed, "KV cache": config.rollout.kv_cache_gib}
        return MemoryEstimate(host=process | model)
    shard = None if weights is None else weights / config.rollout.tensor_parallel
    budget = config.rollout.gpu_memory_utilization * resources.gpu_memory_gib
    cache = None if shard is None else max(0.0, budget - shard)
    return MemoryEstimate(host=process, gpu={"weights": shard, "KV cache and work": cache})


def learner_memory(config: Config, shape: ModelShape | None) -> MemoryEstimate:
    """One learner rank."""
    learner = config.learner
    gpu = config.profile.device == "cuda"
    process: Parts = {"process": 3.0 if gpu else PROCESS_GIB["learner"]}
    if shape is None:
        model: Parts = {"model": None}
        return MemoryEstimate(host=process, gpu=model) if gpu else MemoryEstimate(host=process | model)
    size, ranks, stage = BYTES[learner.dtype], learner.ranks, learner.zero_stage
    trained = shape.lora_parameters(config.model.lora.rank) if config.model.lora.rank else shape.parameters
    frozen = shape.parameters if config.model.lora.rank else 0
    offloaded = gpu and learner.offload_optimizer
    # Gradients come to an offloaded optimizer: 4 bytes and a copy of 2, at stage 3 4 and 4.
    kept = 12 if not offloaded else 20 if stage == 3 else 18
    optimizer: Parts = {"optimizer": trained * kept / (ranks if stage >= 1 else 1) / GIB}
    parts: Parts = {"weights": (trained + frozen) * size / (ranks if stage == 3 else 1) / GIB}
    if not (offloaded and stage == 3):
        # From stage 2 on they are added up in float32, whatever the weights' type.
        parts["gradients"] = trained * (4 / ranks if stage >= 2 else size) / GIB
    if _needs_reference(config) and not config.model.lora.rank:
        parts["reference policy"] = shape.parameters * size / (ranks if stage == 3 else 1) / GIB
    # Logits of one chunk and their gradient, in float32.
    parts["logits"] = 2 * 4 * learner.logits_chunk_tokens * shape.vocabulary / GIB
    parts["activations"] = _activations(config, shape) / GIB
    copied: Parts = {}
    if config.trainer.checkpoint_async:
        # The first rank copies the weights below stage 3, each rank its part of the optimizer: here a rank's mean.
        copied["checkpoint copy"] = (trained * 12 + (trained + frozen) * size) / ranks / GIB
    if not offloaded:
        parts |= optimizer
    host = process | copied | optimizer if offloaded else process | copied
    return MemoryEstimate(host=host, gpu=parts) if gpu else MemoryEstimate(host=host | parts)


def other_memory(name: str, config: Config) -> MemoryEstimate:
    """The verifier with its processes, or the driver with Ray's own."""
    processes = 1 + config.verifier.processes if name == "verifier" else 1
    return MemoryEstimate(host={"processes": processes * PROCESS_GIB[name]})


def _needs_reference(config: Config) -> bool:
    algo = config.algo
    return algo.kl_coef > 0 or algo.kl_conditioned_coef > 0 or algo.name in PREFERENCE_ALGORITHMS


def _activations(config: Config, shape: ModelShape) -> float:
    """Bytes kept for the backward pass of one micro-batch, attention matrices left out (fused attention).

    A block keeps about 10 vectors of the hidden size, q, k, v and 4 of the MLP's width for each token.
    """
    learner = config.learner
    longest = config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens
    tokens = max(learner.tokens_per_micro_batch, longest)
    query_key_value = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    block = 10 * shape.hidden + query_key_value + 4 * shape.intermediate
    kept = shape.layers * shape.hidden + block if learner.gradient_checkpointing else shape.layers * block
    return float(tokens * kept * BYTES[learner.dtype])


def _sum(parts: Parts) -> float | None:
    values = list(parts.values())
    return None if any(value is None for value in values) else sum(value for value in values if value is not None)


def _parts(parts: Parts) -> str:
    return ", ".join(f"{name} {_gib(value)}" for name, value in parts.items())


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"
