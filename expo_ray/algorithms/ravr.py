"""RAVR: answer-conditioned reasoning as a variational posterior of the question-only one (arXiv 2510.25206)."""

import numpy as np

from expo_ray.algorithms.base import Properties
from expo_ray.algorithms.explanations import in_scope, target_sample
from expo_ray.algorithms.grpo import Grpo, weighted
from expo_ray.algorithms.rewards import Rewards, group_advantages, group_metrics
from expo_ray.algorithms.verifree import NO_REWARD_KEYS, Reasoned, answer_sequence, reasoned
from expo_ray.config.algorithms import POLICY_KEYS, Explanations
from expo_ray.config.schema import Config
from expo_ray.messages import Group, Prompt, Rollout, TrainingBatch, TrainingSample

Asked = tuple[np.ndarray, np.ndarray]


def posterior_rewards(utility: Rewards, baseline: float, divergence: Rewards, kl_coef: float) -> Rewards:
    """[K] max(0, u_k - b) - kl_coef D_k: how much more useful z_k is than the prior's own reasoning, less its share of
    the KL of the posterior to the prior."""
    return np.maximum(utility - baseline, 0.0) - kl_coef * divergence


def posterior_samples(
    of_prompt: list[Reasoned], prompt: Prompt, rewards: Rewards, utility: Rewards, config: Config
) -> list[TrainingSample]:
    """The three terms of a prompt's K posterior samples, each sequence with weight 1, before `weighted`:

    policy  A_k log pi(z_k | q, a*), after the answer-conditioned prompt (policy gradient of the posterior)
    sft     kl_coef log pi(z_k | q), after the free one (the KL's gradient in the prior)
    sft     u_k log pi(a* | q, z_k) (the likelihood's gradient)
    """
    advantages = group_advantages(rewards, config.algo.advantage)
    samples = []
    for each, advantage, useful in zip(of_prompt, advantages, utility, strict=True):
        samples.append(
            TrainingSample(
                prompt.conditioned_ids,
                each.completion.token_ids,
                "policy",
                1.0,
                advantage=float(advantage),
                rollout_logprobs=each.completion.logprobs,
            )
        )
        prior = target_sample(prompt.free_ids, each.thought, "sft", config.algo.posterior_kl_coef)
        context = np.concatenate([prompt.free_ids, each.thought])
        samples += [prior, target_sample(context, each.statement, "sft", float(useful))]
    return samples


class Ravr(Grpo):
    """Trains the answer-conditioned policy by utility and the free one towards it (docs/algorithms/ravr.md)."""

    label = "RAVR"
    explanations: Explanations = "required"
    uses = POLICY_KEYS - NO_REWARD_KEYS | {"explanation_scope", "explanation_threshold", "posterior_kl_coef"}
    own_reward = True
    scores_answer = True
    scores_batch = True

    def explanations_ahead(self, step: int) -> int:
        return 1

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        builder = self.builder
        assert builder is not None, "begin() comes before the first step"
        rollouts = [g.rollout for g in groups if in_scope(g, self.config) and g.rollout.explanations]
        prior = [[reasoned(c, r.prompt, builder) for c in r.completions if len(c.token_ids)] for r in rollouts]
        posterior = [[reasoned(c, r.prompt, builder) for c in r.explanations if len(c.token_ids)] for r in rollouts]
        useful, own, divergences = self._scored(rollouts, prior, posterior, builder.lead_tokens)
        samples: list[TrainingSample] = []
        for rollout, of, u, of_prior, kl in zip(rollouts, posterior, useful, own, divergences, strict=True):
            baseline = float(of_prior.mean()) if len(of_prior) else 0.0
            rewards = posterior_rewards(u, baseline, kl, self.config.algo.posterior_kl_coef)
            samples += posterior_samples(of, rollout.prompt, rewards, u, self.config)
        chosen = [sample for sample in samples if len(sample.completion_ids)]
        metrics = group_metrics([group for group in groups if group.rollout.completions], self.config) | {
            "posterior/utility": _mean(useful),
            "posterior/baseline": _mean(own),
            "posterior/kl": _mean(divergences),
            "posterior/missing": float(sum(not len(each.statement) for of in posterior for each in of)),
        }
        return TrainingBatch(step=step, samples=weighted(chosen, self.config), metrics=metrics)

    def _scored(
        self, rollouts: list[Rollout], prior: list[list[Reasoned]], posterior: list[list[Reasoned]], lead: int
    ) -> tuple[list[Rewards], list[Rewards], list[Rewards]]:
        """For each prompt, the utility pi(a* | q, z) of its posterior and of its prior samples, 0 without an answer;
        and of each posterior sample mean_t log pi(z_t | q, a*) - log pi(z_t | q), in nats a token."""
        asked: list[Asked] = []
        for rollout, of_prior, of_posterior in zip(rollouts, prior, posterior, strict=True):
            for each in [*of_posterior, *of_prior]:
                asked += [answer_sequence(rollout.prompt, each.chain, lead)] if len(each.statement) else []
            for each in of_posterior:
                ids = each.completion.token_ids
                asked += [(rollout.prompt.conditioned_ids, ids), (rollout.prompt.free_ids, ids)]
        assert self._score is not None, "attach() comes before the first step"
        found = iter(self._score(asked, self.config.rollout.temperature))

        def utility(each: Reasoned) -> float:
            return float(np.exp(next(found).sum(dtype=np.float64))) if len(each.statement) else 0.0

        useful, own, divergences = [], [], []
        for of_prior, of_posterior in zip(prior, posterior, strict=True):
            useful.append(np.array([utility(each) for each in of_posterior]))
            own.append(np.array([utility(each) for each in of_prior]))
            pairs = [(next(found), next(found)) for _ in of_posterior]
            divergences.append(np.array([float((told - free).mean(dtype=np.float64)) for told, free in pairs]))
        return useful, own, divergences


def _mean(values: list[Rewards]) -> float:
    everything = np.concatenate([np.empty(0), *values])
    return float(everything.mean()) if len(everything) else 0.0
