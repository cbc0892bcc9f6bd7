"""Driver side of the policy term: groups -> advantages -> weighted samples, and the step's counts."""

from collections import defaultdict

import numpy as np

from expo_ray.algorithms.advantages import group_advantages, group_rewards, rewards_differ
from expo_ray.config.schema import Config
from expo_ray.messages import Group, TrainingSample, Verdict


def has_signal(group: Group, config: Config) -> bool:
    """Whether the group's rewards, after overlong shaping, are not all equal."""
    return rewards_differ(group_rewards(group, config))


def counted_outcomes(verdicts: list[Verdict], config: Config) -> list[bool]:
    """Right or not, for each verdict that counts (timeout and error do not, unless configured to)."""
    from expo_ray.verifier.reward import reward

    return [v.outcome == "correct" for v in verdicts if reward(v, config.verifier) is not None]


def pass_rate(group: Group, config: Config) -> float | None:
    """Share of right free completions among those that count; None where none counts."""
    outcomes = counted_outcomes(group.verdicts, config)
    return sum(outcomes) / len(outcomes) if outcomes else None


def policy_samples(groups: list[Group], config: Config) -> list[TrainingSample]:
    """One sample for each counted completion, weighted by `algo.loss_normalisation` over all that are returned:

    sequence_mean  1 / (completions * |o_i|)            (the paper's formula)
    token_mean     1 / tokens of all completions         (DAPO)
    dr_grpo        1 / (completions * max_completion_tokens)   (Dr. GRPO, arXiv 2503.20783)

    `algo.dynamic_sampling` drop and refill leave out groups without signal; none keeps them with advantage 0.
    """
    algo = config.algo
    chosen = []
    for group in groups:
        rewards = group_rewards(group, config)
        if algo.dynamic_sampling != "none" and not rewards_differ(rewards):
            continue
        advantages = group_advantages(rewards, algo.divide_by_std)
        chosen += [
            (group.rollout.prompt, completion, float(advantage))
            for completion, advantage in zip(group.rollout.completions, advantages, strict=True)
            if not np.isnan(advantage)
        ]
    lengths = [len(completion.token_ids) for _, completion, _ in chosen]
    weights = _weights(lengths, algo.loss_normalisation, config.rollout.max_completion_tokens)
    return [
        TrainingSample(
            prompt_ids=prompt.free_ids,
            completion_ids=completion.token_ids,
            term="policy",
            weight=weight,
            advantage=advantage,
            rollout_logprobs=completion.logprobs,
        )
        for (prompt, completion, advantage), weight in zip(chosen, weights, strict=True)
    ]


def _weights(lengths: list[int], normalisation: str, max_tokens: int) -> list[float]:
    if normalisation == "sequence_mean":
        return [1.0 / (len(lengths) * length) for length in lengths]
    if normalisation == "token_mean":
        return [1.0 / sum(lengths)] * len(lengths)
    if normalisation == "dr_grpo":
        return [1.0 / (len(lengths) * max_tokens)] * len(lengths)
    raise ValueError(f"algo.loss_normalisation={normalisation}: expected sequence_mean, token_mean or dr_grpo")


def group_metrics(groups: list[Group], config: Config) -> dict[str, float]:
    """The step's counts over groups: shares in [0, 1], except `groups/total`, `groups/dropped` and the failures.

    Rewards are after overlong shaping. A level without counted completions has no `pass_rate` entry.
    """
    rewards = [group_rewards(group, config) for group in groups]
    counted = np.concatenate([r[~np.isnan(r)] for r in rewards]) if groups else np.empty(0)
    rates = [pass_rate(group, config) for group in groups]
    without_signal = sum(not rewards_differ(r) for r in rewards)
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
    return metrics | _pass_rates(groups, config)


def _pass_rates(groups: list[Group], config: Config) -> dict[str, float]:
    outcomes: defaultdict[str, list[bool]] = defaultdict(list)
    for group in groups:
        counted = counted_outcomes(group.verdicts, config)
        outcomes["all"] += counted
        level = group.rollout.prompt.problem.level
        if level is not None:
            outcomes[f"level_{level}"] += counted
    return {f"pass_rate/{name}": float(np.mean(values)) for name, values in sorted(outcomes.items()) if values}
