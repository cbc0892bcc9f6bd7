"""Estimates each actor's memory and a step's time from the model's dimensions. Rough by design, as the plan says.

Optimizer and sharding follow DeepSpeed's ZeRO (stage 1 shards the optimizer, 2 gradients too, 3 weights too).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from expo_ray.algorithms import make_algorithm
from expo_ray.config.algorithms import algorithm_class, samples_completions
from expo_ray.config.resources import GIB, Resources
from expo_ray.config.schema import Config
from expo_ray.preflight.model_folder import ModelShape

UPDATE_SHARE = 0.35
"""Share of the card's peak reached in forward and backward passes of a dense model."""
BANDWIDTH_SHARE = 0.6
"""Share of the memory bandwidth reached while decoding."""
DECODE_OVERHEAD_S = 0.005
"""Scheduling and kernel launches of one decoding step."""
BYTES_PER_VALUE = 2
FREE_SAMPLES_MEASURED = 2
"""Free completions of a group on which the two properties are measured."""


@dataclass(frozen=True)
class StepDuration:
    """Seconds of a step's long phases if every completion runs to its limit."""

    generate: float
    update: float
    properties: float

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return self.generate + self.update + self.properties


def step_duration(config: Config, shape: ModelShape | None) -> StepDuration | None:
    """Estimates a step; None without GPUs, without a card's data sheet, or if the model's size is not known."""
    if shape is None or config.profile.device != "cuda" or not config.cluster.gpu_tflops:
        return None
    return StepDuration(_generate(config, shape), _update(config, shape), _properties(config, shape))


def duration_text(config: Config, found: StepDuration | None) -> Iterator[str]:
    """Lines of plan.txt; none without an estimate."""
    if found is None:
        return
    hours = found.step * config.trainer.steps / 3600
    yield ""
    yield (
        f"time        about {found.step:.0f} s a step (generation {found.generate:.0f}, update {found.update:.0f}, "
        f"properties {found.properties:.0f}), {hours:.1f} h for {config.trainer.steps} steps"
    )
    yield (
        f"            assumed, not measured: every completion runs to its limit; updates at {UPDATE_SHARE:.0%} of the "
        f"card's peak, decoding at {BANDWIDTH_SHARE:.0%} of its bandwidth;"
    )
    yield "            verification, weight sync, evaluation and start are not counted"


def _generate(config: Config, shape: ModelShape) -> float:
    """Each decoding step reads the weights and the key-value cache of all sequences once."""
    rollout, cluster = config.rollout, config.cluster
    sequences = _asked_of_an_engine(config)
    at_once = min(sequences, sequences_at_once(config, shape))
    waves = -(-sequences // at_once)
    mean_context = rollout.max_prompt_tokens + rollout.max_completion_tokens / 2
    cache = at_once * mean_context * shape.kv_bytes_per_token(BYTES_PER_VALUE)
    read = (shape.parameters * BYTES_PER_VALUE + cache) / rollout.tensor_parallel
    decode = read / (cluster.gpu_terabytes_per_s * 1e12 * BANDWIDTH_SHARE) + DECODE_OVERHEAD_S
    return waves * rollout.max_completion_tokens * decode


def _update(config: Config, shape: ModelShape) -> float:
    """2 N operations a token forward, 4 N backward (2 N with frozen weights), 2 N more to recompute activations."""
    learner = config.learner
    samples = config.trainer.prompts_per_step * (completions_per_prompt(config) + targets_per_prompt(config))
    passes = 2 + (2 if config.model.lora.rank else 4) + (2 if learner.gradient_checkpointing else 0)
    if _needs_reference(config):
        passes += 2  # the reference policy's forward pass
    return samples * _length(config) * passes * shape.parameters / _speed(config)


def completions_per_prompt(config: Config) -> int:
    """Free completions that a step samples for each prompt."""
    return config.rollout.samples_per_prompt if samples_completions(config) else 0


def targets_per_prompt(config: Config) -> int:
    """Explanations, or the gold solution, that a prompt adds to its completions in the training batch."""
    return config.rollout.explanations_per_prompt + algorithm_class(config.algo.name).needs_gold


def _properties(config: Config, shape: ModelShape) -> float:
    """Forward passes over explanations, gold solution and free samples, and over the answer after each."""
    every, rollout = config.algo.properties_every, config.rollout
    if not every:
        return 0.0
    measured = rollout.explanations_per_prompt + 1 + min(FREE_SAMPLES_MEASURED, completions_per_prompt(config))
    tokens = config.trainer.prompts_per_step * 2 * measured * _length(config)
    return 2 * tokens * shape.parameters / _speed(config) / every


def _length(config: Config) -> int:
    return config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens


def _speed(config: Config) -> float:
    """Operations per second of all learner ranks together."""
    return config.learner.ranks * config.cluster.gpu_tflops * 1e12 * UPDATE_SHARE


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Resident size of a process with its libraries loaded and no model; tests/integration measures the real ones.
PROCESS_GIB = {"rollout": 1.3, "learner": 0.9, "verifier": 0.3, "reward": 0.3, "driver": 0.9}
FEWEST_SEQUENCES, MOST_SEQUENCES = 64, 1024
"""Bounds of the derived number of sequences that an engine decodes at once."""
Parts = dict[str, float | None]


@dataclass(frozen=True)
class MemoryEstimate:
    """GiB of one actor, by purpose; None: not known before the model is loaded."""

    host: Parts = field(default_factory=dict)
    gpu: Parts = field(default_factory=dict)
    rough: frozenset[str] = frozenset({"activations"})
    """Parts that depend on how long samples turn out; no run is refused for them."""

    @property
    def host_gib(self) -> float | None:
        """Sum of the host parts; None if one is not known."""
        return _sum(self.host)

    def sure(self, parts: Parts) -> float:
        """Sum of the known parts that are not rough."""
        return sum(value for name, value in parts.items() if value is not None and name not in self.rough)

    def text(self) -> str:
        """One line: totals and parts."""
        places = [(name, parts) for name, parts in (("GPU", self.gpu), ("host", self.host)) if parts]
        return "; ".join(f"{name} {_gib(_sum(parts))} GiB ({_parts(parts)})" for name, parts in places)


def sequences_at_once(config: Config, shape: ModelShape | None) -> int:
    """How many sequences an engine decodes at once: `rollout.max_sequences`, if it is not 0.

    If it is 0, as many as a step asks of an engine, so that a step is sampled in one wave, but on a CPU no more than
    the key-value cache holds at full length: vLLM would preempt sequences and recompute them. Evaluations ask for more
    than a step and get at least `FEWEST_SEQUENCES`.
    """
    rollout = config.rollout
    if rollout.max_sequences:
        return rollout.max_sequences
    wanted = min(max(_asked_of_an_engine(config), FEWEST_SEQUENCES), MOST_SEQUENCES)
    if shape is None or config.profile.device != "cpu":
        return wanted
    room = rollout.kv_cache_gib * GIB / (_length(config) * shape.kv_bytes_per_token(BYTES[rollout.dtype]))
    return max(1, min(wanted, int(room)))


def _asked_of_an_engine(config: Config) -> int:
    """Completions and explanations that a step samples with each engine."""
    rollout = config.rollout
    per_prompt = completions_per_prompt(config) + rollout.explanations_per_prompt
    return -(-config.trainer.prompts_per_step * per_prompt // rollout.workers)


def engine_memory(config: Config, shape: ModelShape | None, resources: Resources) -> MemoryEstimate:
    """Memory of one vLLM engine: host memory of all its shards, GPU memory of one shard."""
    gpu = config.profile.device == "cuda"
    process: Parts = {"process": 4.0 if gpu else PROCESS_GIB["rollout"]}
    size = BYTES[config.rollout.dtype]
    weights = None if shape is None else shape.parameters * size / GIB
    if not gpu:
        # vLLM's CPU engine keeps a second copy of each linear weight, packed for oneDNN.
        packed = None if shape is None else shape.layers * sum(i * o for i, o in shape.linear_shapes) * size / GIB
        model: Parts = {"weights": weights, "packed weights": packed, "KV cache": config.rollout.kv_cache_gib}
        return MemoryEstimate(host=process | model)
    shard = None if weights is None else weights / config.rollout.tensor_parallel
    budget = config.rollout.gpu_memory_utilization * resources.gpu_memory_gib
    cache = None if shard is None else max(0.0, budget - shard)
    return MemoryEstimate(host=process, gpu={"weights": shard, "KV cache and work": cache})


def learner_memory(config: Config, shape: ModelShape | None) -> MemoryEstimate:
    """Memory of one learner rank."""
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
    # An offloaded optimizer also holds gradients: 4 bytes and a copy of 2, at stage 3 of 4.
    kept = 12 if not offloaded else 20 if stage == 3 else 18
    optimizer: Parts = {"optimizer": trained * kept / (ranks if stage >= 1 else 1) / GIB}
    parts: Parts = {"weights": (trained + frozen) * size / (ranks if stage == 3 else 1) / GIB}
    if not (offloaded and stage == 3):
        # From stage 2 on DeepSpeed accumulates them in float32, whatever the weights' type.
        parts["gradients"] = trained * (4 / ranks if stage >= 2 else size) / GIB
    if _needs_reference(config) and not config.model.lora.rank:
        parts["reference policy"] = shape.parameters * size / (ranks if stage == 3 else 1) / GIB
    # One chunk's logits and their gradient, in float32.
    parts["logits"] = 2 * 4 * learner.logits_chunk_tokens * shape.vocabulary / GIB
    parts["activations"] = _activations(config, shape) / GIB
    copied: Parts = {}
    if config.trainer.checkpoint_async:
        # Below stage 3 the first rank copies the weights, every rank its part of the optimizer; this is the mean.
        copied["checkpoint copy"] = (trained * 12 + (trained + frozen) * size) / ranks / GIB
    if not offloaded:
        parts |= optimizer
    host = process | copied | optimizer if offloaded else process | copied
    return MemoryEstimate(host=host, gpu=parts) if gpu else MemoryEstimate(host=host | parts)


def other_memory(name: str, config: Config) -> MemoryEstimate:
    """Memory of a verifier or a reward actor with its processes, or of the driver with Ray's own."""
    processes = {"verifier": 1 + config.verifier.processes, "reward": 2}.get(name, 1)
    return MemoryEstimate(host={"processes": processes * PROCESS_GIB[name]})


def _needs_reference(config: Config) -> bool:
    algorithm = make_algorithm(config)
    return bool(algorithm.reference_terms) and not algorithm.stores_reference


def _activations(config: Config, shape: ModelShape) -> float:
    """Bytes kept for the backward pass of one micro-batch; fused attention keeps no attention matrices.

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
