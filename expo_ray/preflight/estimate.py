"""Estimates each actor's memory and a step's time from the model's dimensions. Rough by design, as the plan says.

Optimizer and sharding follow DeepSpeed's ZeRO (stage 1 shards the optimizer, 2 gradients too, 3 weights too).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from expo_ray.algorithms import make_algorithm
from expo_ray.config.algorithms import algorithm_class, samples_completions
from expo_ray.config.resources import BUCKET_ELEMENTS, GIB, Resources
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
    samples = config.trainer.prompts_per_step * (completions_per_prompt(config) + targets_per_prompt(config))
    again = recomputes(config, shape, config.cluster.gpu_memory_gib)
    passes = 2 + (2 if config.model.lora.rank else 4) + (2 if again else 0)
    if make_algorithm(config).loads_reference:
        passes += 2  # the reference policy's forward pass
    if algorithm_class(config.algo.name).scores_batch:
        passes += 2  # a teacher's, or that of a reward from log-probabilities
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
CONTEXT_GIB, GRAPHS_GIB = 0.8, 1.0
"""What CUDA, cuBLAS and NCCL take of a card for each process (a sleeping eager engine on an H100 kept 0.77), and an
engine's CUDA graphs (a guess)."""
FULL_CARD = 0.85
"""Share of a card that an update may fill by this estimate before activations are computed twice instead of kept."""
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
    on_card: Parts = {"weights": shard, "KV cache and work": cache, "context and graphs": asleep_gib(config)}
    return MemoryEstimate(host=process, gpu=on_card)


def asleep_gib(config: Config) -> float:
    """GiB of its card that an engine takes besides `rollout.gpu_memory_utilization`, and keeps while it sleeps."""
    return CONTEXT_GIB + (0.0 if config.rollout.enforce_eager else GRAPHS_GIB)


def learner_memory(config: Config, shape: ModelShape | None, card_gib: float) -> MemoryEstimate:
    """Memory of one learner rank during an update, on a card of this size (0: not known).

    What DeepSpeed holds was read from its buffers on CPU (tests/integration/test_learner_invariance.py).
    """
    learner = config.learner
    gpu = config.profile.device == "cuda"
    process: Parts = {"process": 3.0 if gpu else PROCESS_GIB["learner"]}
    if shape is None:
        model: Parts = {"model": None}
        return MemoryEstimate(host=process, gpu=model) if gpu else MemoryEstimate(host=process | model)
    parts = _learner_parts(config, shape)
    parts["activations"] = _activations(config, shape, recomputes(config, shape, card_gib)) / GIB
    size, ranks = BYTES[learner.dtype], learner.ranks
    trained, frozen = _trained_and_frozen(config, shape)
    host = dict(process)
    if config.trainer.checkpoint_async:
        # Below stage 3 the first rank copies the weights, every rank its part of the optimizer; this is the mean.
        host["checkpoint copy"] = (trained * 12 + (trained + frozen) * size) / ranks / GIB
    if gpu and learner.offload_optimizer:
        # Gradients of 4 bytes; up to stage 2 a copy of the weights, and at stage 2 the sum over micro-batches; at
        # stage 3 a second gradient.
        kept = 12 + 4 + {1: size, 2: size + 4, 3: 4}.get(learner.zero_stage, 0)
        host["optimizer"] = trained * kept / ranks / GIB
    elif learner.offload_between_updates:
        host["optimizer between updates"] = parts["optimizer"]
    return MemoryEstimate(host=host, gpu=parts) if gpu else MemoryEstimate(host=host | parts)


def resting_gib(config: Config, learner: MemoryEstimate) -> float:
    """GiB that a learner rank keeps on its card between updates.

    Gradients and reduce buckets are freed after each update, except at ZeRO-3.
    """
    kept = {"weights", "reference policy", "optimizer", "context"}
    if config.learner.zero_stage == 3:
        kept |= {"gradients", "reduce buckets"}
    if config.learner.offload_between_updates:
        kept -= {"optimizer"}
    return sum(value or 0.0 for name, value in learner.gpu.items() if name in kept)


def recomputes(config: Config, shape: ModelShape | None, card_gib: float) -> bool:
    """Whether activations are computed twice: `learner.gradient_checkpointing`, or, if it is null, whether the update
    would otherwise fill more than `FULL_CARD` of a card of this size (on a card that is not known: yes)."""
    if config.learner.gradient_checkpointing is not None:
        return config.learner.gradient_checkpointing
    if config.profile.device != "cuda":
        return False
    if shape is None or not card_gib:
        return True
    needed = sum(value or 0.0 for value in _learner_parts(config, shape).values())
    needed += _activations(config, shape, False) / GIB
    if config.cluster.placement == "colocated":
        needed += asleep_gib(config)
    return needed > FULL_CARD * card_gib


def _trained_and_frozen(config: Config, shape: ModelShape) -> tuple[int, int]:
    rank = config.model.lora.rank
    return (shape.lora_parameters(rank), shape.parameters) if rank else (shape.parameters, 0)


def _learner_parts(config: Config, shape: ModelShape) -> Parts:
    """What a rank holds during an update, without activations, where it computes: on its card, or on a CPU."""
    learner = config.learner
    gpu = config.profile.device == "cuda"
    size, ranks, stage = BYTES[learner.dtype], learner.ranks, learner.zero_stage
    trained, frozen = _trained_and_frozen(config, shape)
    offloaded = gpu and learner.offload_optimizer
    parts: Parts = {"weights": (trained + frozen) * size / (ranks if stage == 3 else 1) / GIB}
    if offloaded:
        # One gradient on its way to the host, at most the largest weight's, for which DeepSpeed keeps a buffer.
        largest = min(trained, shape.hidden * max(shape.vocabulary, shape.intermediate))
        parts["gradients"] = largest * size / (ranks if stage == 3 else 1) / GIB
    else:
        # Master weights and two moments; without ZeRO, float32 weights are their own masters.
        parts["optimizer"] = trained * (8 if stage == 0 and size == 4 else 12) / (ranks if stage >= 1 else 1) / GIB
        # From stage 2 on DeepSpeed accumulates in float32. Below, bfloat16 ones are copied to float32 for the step.
        before = size if size == 4 else size + 4 / (ranks if stage == 1 else 1)
        parts["gradients"] = trained * (4 / ranks if stage >= 2 else before) / GIB
    if make_algorithm(config).loads_reference and not config.model.lora.rank:
        parts["reference policy"] = shape.parameters * size / (ranks if stage == 3 else 1) / GIB
    if gpu and stage:
        # Two, so that one is filled while the other is reduced; at stage 3 one, which is kept.
        parts["reduce buckets"] = (2 if stage < 3 else 1) * BUCKET_ELEMENTS * size / GIB
    # One chunk's, with all that scoring them and its backward pass hold at once (tests/unit/test_learner_card.py).
    wide = 4 if config.model.head_dtype == "float32" else size
    entropy = 8 if config.algo.entropy_bonus else wide if config.logging.entropy_every else 0
    copied = 4 * shape.hidden if wide > size else 0  # the output layer's weights in float32
    parts["logits"] = ((12 + entropy) * learner.logits_chunk_tokens + copied) * shape.vocabulary / GIB
    if gpu:
        parts["context"] = CONTEXT_GIB
    return parts


def other_memory(name: str, config: Config) -> MemoryEstimate:
    """Memory of a verifier or a reward actor with its processes, or of the driver with Ray's own."""
    processes = {"verifier": 1 + config.verifier.processes, "reward": 2}.get(name, 1)
    return MemoryEstimate(host={"processes": processes * PROCESS_GIB[name]})


def _activations(config: Config, shape: ModelShape, recompute: bool) -> float:
    """Bytes kept for the backward pass of one micro-batch; fused attention keeps no attention matrices.

    A block keeps about 10 vectors of the hidden size, q, k, v and 4 of the MLP's width for each token.
    """
    learner = config.learner
    longest = config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens
    tokens = max(learner.tokens_per_micro_batch, longest)
    query_key_value = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    block = 10 * shape.hidden + query_key_value + 4 * shape.intermediate
    kept = shape.layers * shape.hidden + block if recompute else shape.layers * block
    return float(tokens * kept * BYTES[learner.dtype])


def _sum(parts: Parts) -> float | None:
    values = list(parts.values())
    return None if any(value is None for value in values) else sum(value for value in values if value is not None)


def _parts(parts: Parts) -> str:
    return ", ".join(f"{name} {_gib(value)}" for name, value in parts.items())


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"
