"""Time of a step on GPUs, from the model's size and the card's data sheet. An upper bound under stated assumptions.

It has not been compared with a measured step on these cards.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from expo_ray.config.model_shape import ModelShape
from expo_ray.config.schema import Config

UPDATE_SHARE = 0.35
"""Of the peak, in forward and backward passes of a dense model."""
BANDWIDTH_SHARE = 0.6
"""Of the memory bandwidth, while decoding."""
DECODE_OVERHEAD_S = 0.005
"""Scheduling and launches of one decoding step of an engine."""
BYTES_PER_VALUE = 2
FREE_SAMPLES_MEASURED = 2
"""Free completions of a group that the two properties are measured on."""


@dataclass(frozen=True)
class StepDuration:
    """Seconds of one step's long phases, if every completion runs to its limit."""

    generate: float
    update: float
    properties: float

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return self.generate + self.update + self.properties


def step_duration(config: Config, shape: ModelShape | None) -> StepDuration | None:
    """The estimate; None without GPUs, without a card's data sheet, or where the model's size is not known."""
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
    """Decoding step by step: each reads the weights and the key-value cache of all sequences once."""
    rollout, cluster = config.rollout, config.cluster
    per_prompt = rollout.samples_per_prompt + rollout.explanations_per_prompt
    sequences = -(-config.trainer.prompts_per_step * per_prompt // rollout.workers)
    at_once = min(sequences, rollout.max_sequences)
    waves = -(-sequences // at_once)
    mean_context = rollout.max_prompt_tokens + rollout.max_completion_tokens / 2
    cache = at_once * mean_context * shape.kv_bytes_per_token(BYTES_PER_VALUE)
    read = (shape.parameters * BYTES_PER_VALUE + cache) / rollout.tensor_parallel
    decode = read / (cluster.gpu_terabytes_per_s * 1e12 * BANDWIDTH_SHARE) + DECODE_OVERHEAD_S
    return waves * rollout.max_completion_tokens * decode


def _update(config: Config, shape: ModelShape) -> float:
    """2 N operations a token forward, 4 N backward (2 N with frozen weights), 2 N more where activations are redone."""
    algo, rollout, learner = config.algo, config.rollout, config.learner
    extra = 1 if algo.name == "sft_gt_grpo" else rollout.explanations_per_prompt
    samples = config.trainer.prompts_per_step * (rollout.samples_per_prompt + extra)
    passes = 2 + (2 if config.model.lora.rank else 4) + (2 if learner.gradient_checkpointing else 0)
    if algo.kl_coef > 0 or algo.name in ("exp_dpo", "dpo_gt"):
        passes += 2  # the reference policy's forward pass
    return samples * _length(config) * passes * shape.parameters / _speed(config)


def _properties(config: Config, shape: ModelShape) -> float:
    """Forward passes over explanations, gold solution and free samples: each, and the answer behind its chain."""
    every, rollout = config.algo.properties_every, config.rollout
    if not every:
        return 0.0
    measured = rollout.explanations_per_prompt + 1 + min(FREE_SAMPLES_MEASURED, rollout.samples_per_prompt)
    tokens = config.trainer.prompts_per_step * 2 * measured * _length(config)
    return 2 * tokens * shape.parameters / _speed(config) / every


def _length(config: Config) -> int:
    return config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens


def _speed(config: Config) -> float:
    """Operations a second of all learner ranks together."""
    return config.learner.ranks * config.cluster.gpu_tflops * 1e12 * UPDATE_SHARE
