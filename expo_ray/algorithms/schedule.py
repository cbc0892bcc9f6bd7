"""When things happen: the schedule of beta, and refresh periods in steps. Steps count from 0."""

import math

from expo_ray.config.schema import AlgoConfig


def beta_at(step: int, steps: int, algo: AlgoConfig) -> float:
    """Weight of the ExP-SFT term at `step` of `steps`: all of `algo.beta` at step 0, falling to 0 at `steps`.

    Raises ValueError for an unknown `beta_schedule`.
    """
    progress = min(max(step / steps, 0.0), 1.0)
    if algo.beta_schedule == "constant":
        return algo.beta
    if algo.beta_schedule == "linear":
        return algo.beta * (1.0 - progress)
    if algo.beta_schedule == "cosine":
        return algo.beta * (1.0 + math.cos(math.pi * progress)) / 2
    raise ValueError(f"algo.beta_schedule={algo.beta_schedule}: expected constant, linear or cosine")


def steps_ahead(step: int, steps: int, period: int) -> int:
    """For how many steps' prompts, this step's first, something is sampled at `step`; 0: nothing now.

    period 1: this step's prompts at each step. period k: every k steps, for the next k steps. period 0: at the
    first step, for all steps.
    """
    if period == 0:
        return steps if step == 0 else 0
    return min(period, steps - step) if step % period == 0 else 0
