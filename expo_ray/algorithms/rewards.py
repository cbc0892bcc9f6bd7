"""Rewards of a group and their advantages (GRPO: arXiv 2402.03300; overlong shaping: DAPO, 2503.14476)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from expo_ray.config.schema import AlgoConfig, Config
from expo_ray.messages import Group, Score, Verdict
from expo_ray.rewards.functions import FAILURES, VERIFIER, own_functions, reward, weights_of

Rewards = NDArray[np.float64]

EQUAL_REWARDS = 1e-9
"""Rewards that span less than this are equal: their advantages are exactly 0."""


def overlong_penalty(length: int, max_tokens: int, algo: AlgoConfig) -> float:
    """The reward that a completion of `length` tokens loses (DAPO, equation 13): 0 up to `overlong_buffer_tokens`
    before the limit, then rising linearly to `overlong_penalty` at the limit. A buffer of 0 turns it off."""
    buffer = algo.overlong_buffer_tokens
    if buffer <= 0:
        return 0.0
    excess = length - (max_tokens - buffer)
    return algo.overlong_penalty * min(max(excess / buffer, 0.0), 1.0)


def completion_reward(verdict: Verdict, scores: Mapping[str, Score], config: Config) -> float | None:
    """The reward of one completion: the weighted sum over `reward.functions`, where the verifier is one of them.

    None, for a completion that is left out of its group: a function whose weight is not 0 could not decide or failed,
    or the verifier reached no verdict (timeout, error).
    """
    total = 0.0
    for name, weight in weights_of(config.reward).items():
        if weight:
            value = reward(verdict, config.verifier) if name == VERIFIER else scores[name].value
            if value is None:
                return None
            total += weight * value
    return total


def total_rewards(group: Group, config: Config) -> Rewards:
    """[G] `completion_reward` of each free completion, NaN where it is None or the completion is empty."""
    values = [
        completion_reward(verdict, scores, config) if len(completion.token_ids) else None
        for completion, verdict, scores in zip(group.rollout.completions, group.verdicts, scores_of(group), strict=True)
    ]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def scores_of(group: Group) -> list[dict[str, Score]]:
    """For each free completion: function -> what it gave; empty dictionaries without functions of one's own."""
    return [{name: of[i] for name, of in group.scores.items()} for i in range(len(group.verdicts))]


def group_rewards(group: Group, config: Config) -> Rewards:
    """[G] `total_rewards` after overlong shaping."""
    limit = config.rollout.max_completion_tokens
    lengths = [len(completion.token_ids) for completion in group.rollout.completions]
    return total_rewards(group, config) - [overlong_penalty(length, limit, config.algo) for length in lengths]


def rewards_differ(rewards: Sequence[float] | Rewards) -> bool:
    """Whether the rewards, ignoring NaN, are not all equal."""
    counted = np.asarray(rewards, dtype=np.float64)
    counted = counted[~np.isnan(counted)]
    return bool(len(counted) > 1 and np.ptp(counted) > EQUAL_REWARDS)


def group_advantages(rewards: Sequence[float] | Rewards, kind: str) -> Rewards:
    """[G] advantages by `algo.advantage`. NaN stays NaN and does not count in G, mean and std.

    grpo     (R_i - mean) / std; std divides by G and has nothing added to it, as in the paper's formula
    dr_grpo  R_i - mean                                          (Dr. GRPO, arXiv 2503.20783)
    rloo     R_i - mean of the others' = G / (G - 1) (R_i - mean)  (arXiv 2402.14740)
    maxrl    (R_i - mean) / mean                                 (MaxRL, arXiv 2602.02710)

    Equal rewards give exactly 0. MaxRL is made for rewards of 0 and 1, whose mean is at least 1/G where they differ;
    a smaller mean of other rewards counts as 1/G.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if not rewards_differ(values):
        return np.where(np.isnan(values), np.nan, 0.0)
    mean, counted = np.nanmean(values), int((~np.isnan(values)).sum())
    centred = values - mean
    if kind == "rloo":
        return centred * (counted / (counted - 1))
    if kind == "maxrl":
        return centred / max(mean, 1 / counted)
    return centred if kind == "dr_grpo" else centred / np.nanstd(values)


def has_signal(group: Group, config: Config) -> bool:
    """Whether the total rewards, before overlong shaping, are not all equal.

    With shaping, the shorter of two wrong completions would be reinforced although nothing is correct (DAPO's
    dynamic sampling judges by correctness too).
    """
    return rewards_differ(total_rewards(group, config))


def shaped_advantages(group: Group, config: Config) -> Rewards:
    """[G] advantages of the shaped rewards; exactly 0 in a group without signal, NaN for completions left out."""
    rewards = group_rewards(group, config) if has_signal(group, config) else total_rewards(group, config)
    return group_advantages(rewards, config.algo.advantage)


def counted_outcomes(verdicts: list[Verdict], config: Config) -> list[bool]:
    """Whether each counted verdict is correct; timeout and error do not count unless configured to."""
    return [v.outcome == "correct" for v in verdicts if reward(v, config.verifier) is not None]


def pass_rate(group: Group, config: Config) -> float | None:
    """Share of correct completions among those that count; None if none counts."""
    outcomes = counted_outcomes(group.verdicts, config)
    return sum(outcomes) / len(outcomes) if outcomes else None


def group_metrics(groups: list[Group], config: Config) -> dict[str, float]:
    """Metrics of a step's groups; the metrics are listed in docs/metrics.md.

    Rewards are after overlong shaping. A level without counted completions has no `pass_rate` entry.
    """
    rewards = [group_rewards(group, config) for group in groups]
    counted = np.concatenate([r[~np.isnan(r)] for r in rewards]) if groups else np.empty(0)
    rates = [pass_rate(group, config) for group in groups]
    without_signal = sum(not has_signal(group, config) for group in groups)
    total = max(len(groups), 1)
    completions = [c for group in groups for c in group.rollout.completions]
    metrics = {
        "groups/total": float(len(groups)),
        "groups/all_wrong": sum(rate == 0.0 for rate in rates) / total,
        "groups/all_right": sum(rate == 1.0 for rate in rates) / total,
        "groups/no_signal": without_signal / total,
        "groups/dropped": float(without_signal if config.algo.dynamic_sampling != "none" else 0),
        "completions/total": float(len(completions)),
        "completions/left_out": float(len(completions) - len(counted)),
        "completions/truncated": sum(c.finish_reason == "length" for c in completions) / max(len(completions), 1),
        "completions/mean_tokens": float(np.mean([len(c.token_ids) for c in completions])) if completions else 0.0,
    }
    if len(counted):
        metrics["reward/mean"] = float(counted.mean())
        metrics["reward/std"] = float(counted.std())
    return metrics | _function_metrics(groups, config) | _pass_rates(groups, config)


def _function_metrics(groups: list[Group], config: Config) -> dict[str, float]:
    """Mean, failures and milliseconds of each reward function; nothing where the verifier is the only one."""
    if not own_functions(config.reward):
        return {}
    names = weights_of(config.reward)
    found = {name: [score for group in groups for score in group.scores.get(name, ())] for name in names}
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    if VERIFIER in found:
        found[VERIFIER] = [
            Score(reward(v, config.verifier), v.outcome if v.outcome in FAILURES else "", v.ms) for v in verdicts
        ]
    metrics: dict[str, float] = {}
    for name, scores in found.items():
        values = [score.value for score in scores if score.value is not None]
        failed = sum(bool(score.failure) for score in scores)
        undecided = sum(score.value is None and not score.failure for score in scores)
        of = {"failed": float(failed), "undecided": float(undecided)}
        of |= {"mean": float(np.mean(values))} if values else {}
        of |= {"ms": float(np.mean([score.ms for score in scores]))} if scores else {}
        metrics |= {f"reward/{name}/{what}": value for what, value in of.items()}
    return metrics


def _pass_rates(groups: list[Group], config: Config) -> dict[str, float]:
    outcomes: defaultdict[str, list[bool]] = defaultdict(list)
    for group in groups:
        counted = counted_outcomes(group.verdicts, config)
        outcomes["all"] += counted
        level = group.rollout.prompt.problem.level
        if level is not None:
            outcomes[f"level_{level}"] += counted
    return {f"pass_rate/{name}": float(np.mean(values)) for name, values in sorted(outcomes.items()) if values}
