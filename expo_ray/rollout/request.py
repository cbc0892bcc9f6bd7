"""What the driver asks of a rollout worker."""

from dataclasses import dataclass

from expo_ray.config.schema import Config
from expo_ray.messages import Prompt


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What to sample for one prompt."""

    prompt: Prompt
    samples: int
    """Free completions; may be 0."""
    explanations: int
    """Self-explanations; may be 0."""
    expected_tokens: float = 0.0
    """Of one of its completions (expo_ray.rollout.lengths); decides where and when it is sampled."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn."""

    temperature: float
    top_p: float
    top_k: int
    """0: no limit."""
    max_tokens: int


def training_sampling(config: Config) -> Sampling:
    """The distribution of the rollouts that are trained on."""
    rollout = config.rollout
    return Sampling(rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_completion_tokens)


def evaluation_sampling(config: Config) -> Sampling:
    """The distribution of an evaluation's completions."""
    return Sampling(config.eval.temperature, config.eval.top_p, 0, config.rollout.max_completion_tokens)
