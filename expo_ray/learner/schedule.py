"""The learning rate of an update, a pure function of its number: nothing to save, nothing to restore wrong."""

import math

from expo_ray.config.schema import LearnerConfig


def learning_rate(config: LearnerConfig, step: int, steps: int) -> float:
    """Learning rate of update `step` (from 0) of `steps`: linear warm-up, then constant, linear or cosine to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate
