"""Rewards of a group and their advantages (GRPO: arXiv 2402.03300; overlong shaping: DAPO, 2503.14476)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from expo_ray.config.schema import AlgoConfig, Config
from expo_ray.messages import Group

Rewards = NDArray[np.float64]

EQUAL_REWARDS = 1e-9
"""Rewards that span less than this are equal: their advantages are exactly 0."""


def overlong_penalty(length: int, max_tokens: int, algo: AlgoConfig) -> float:
    """What a completion of `length` tokens loses of its reward: 0 until `overlong_buffer_tokens` before the limit,
    then rising linearly to `overlong_penalty` at the limit (DAPO equation 13). 0 with a buffer of 0."""
    buffer = algo.overlong_buffer_tokens
    if buffer <= 0:
        return 0.0
    excess = length - (max_tokens - buffer)
    return algo.overlong_penalty * min(max(excess / buffer, 0.0), 1.0)


def group_rewards(group: Group, config: Config) -> Rewards:
    """[G] reward of each free completion after overlong shaping; NaN where the verifier gave no verdict
    (timeout, error) or the completion is empty: those are left out of the group."""
    from expo_ray.verifier.reward import reward

    rewards = np.full(len(group.verdicts), np.nan)
    for i, (completion, verdict) in enumerate(zip(group.rollout.completions, group.verdicts, strict=True)):
        value = reward(verdict, config.verifier)
        if value is not None and len(completion.token_ids):
            length = len(completion.token_ids)
            rewards[i] = value - overlong_penalty(length, config.rollout.max_completion_tokens, config.algo)
    return rewards


def rewards_differ(rewards: Sequence[float] | Rewards) -> bool:
    """Whether a group's rewards (NaN left out) carry a signal, that is, are not all equal."""
    counted = np.asarray(rewards, dtype=np.float64)
    counted = counted[~np.isnan(counted)]
    return bool(len(counted) > 1 and np.ptp(counted) > EQUAL_REWARDS)


def group_advantages(rewards: Sequence[float] | Rewards, divide_by_std: bool) -> Rewards:
    """[G] A_i = (R_i - mean) / std, or R_i - mean (Dr. GRPO). NaN stays NaN and is left out of mean and std.

    std is the population's (divide by G), with nothing added to it, as the paper's formula has it.
    Equal rewards give exactly 0.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if not rewards_differ(values):
        return np.where(np.isnan(values), np.nan, 0.0)
    centred = values - np.nanmean(values)
    return centred / np.nanstd(values) if divide_by_std else centred
