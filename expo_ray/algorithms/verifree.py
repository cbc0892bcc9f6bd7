"""VeriFree: the likelihood of the gold answer after the policy's own reasoning as reward (arXiv 2505.21493)."""

from dataclasses import dataclass, replace

import numpy as np

from expo_ray.algorithms.base import Properties
from expo_ray.algorithms.explanations import target_sample
from expo_ray.algorithms.grpo import Grpo, weighted
from expo_ray.algorithms.rewards import Rewards, group_advantages, group_metrics
from expo_ray.config.algorithms import POLICY_KEYS
from expo_ray.config.schema import Config
from expo_ray.messages import Completion, FloatArray, Group, IntArray, Prompt, TrainingBatch, TrainingSample
from expo_ray.prompts.builder import PromptBuilder

NO_REWARD_KEYS = frozenset({"dynamic_sampling", "refill_rounds", "overlong_buffer_tokens", "overlong_penalty"})
"""Keys that act on the verifier's rewards, which nothing here reads."""


@dataclass(frozen=True, slots=True)
class Reasoned:
    """A completion as reasoning z and the statement of the gold answer a* that takes its own answer's place."""

    completion: Completion
    thought: IntArray
    """[Z] z, its ids before its own statement; all of a completion that states no answer."""
    chain: IntArray
    """[Z'] what a* follows: z, and what must close it (PromptBuilder.chain_of)."""
    statement: IntArray
    """[A] ids that close z and state a*, with the end token; none where the completion states no answer."""


def reasoned(completion: Completion, prompt: Prompt, builder: PromptBuilder) -> Reasoned:
    """Cuts a completion. One that the length limit cut off states no answer."""
    ids = completion.token_ids
    if completion.finish_reason != "stop" or not builder.states_answer(completion.text):
        return Reasoned(completion, ids, ids, ids[:0])
    chain = builder.chain_of(ids)
    sampled = next((i for i, (a, b) in enumerate(zip(chain, ids, strict=False)) if a != b), min(len(chain), len(ids)))
    return Reasoned(completion, ids[:sampled], chain, builder.restate(prompt, ids)[0][sampled:])


def answer_sequence(prompt: Prompt, chain: IntArray, lead_tokens: int) -> tuple[IntArray, IntArray]:
    """What the learners score for log pi(a* | q, z): question, chain and the answer's lead, and the answer's ids."""
    assert prompt.answer_span is not None, "PromptBuilder makes an answer span for each prompt"
    lead, answer = prompt.answer_span[:lead_tokens], prompt.answer_span[lead_tokens:]
    return np.concatenate([prompt.free_ids, chain, lead]), answer


def verifree_samples(
    groups: list[list[Reasoned]], prompts: list[Prompt], rewards: list[Rewards], config: Config
) -> list[TrainingSample]:
    """The two terms of each completion: A log pi(z | q) and R log pi(a* | q, z), with A from the group's R.

    Reasoning and answer are one sequence: both have the weight that `algo.loss_normalisation` gives it.
    """
    parts: list[tuple[TrainingSample, TrainingSample]] = []
    for of_group, prompt, found in zip(groups, prompts, rewards, strict=True):
        advantages = group_advantages(found, config.algo.advantage)
        for each, reward, advantage in zip(of_group, found, advantages, strict=True):
            thought = TrainingSample(
                prompt.free_ids,
                each.thought,
                "policy",
                1.0,
                advantage=float(advantage),
                rollout_logprobs=each.completion.logprobs[: len(each.thought)],
            )
            context = np.concatenate([prompt.free_ids, each.thought])
            parts.append((thought, target_sample(context, each.statement, "sft", float(reward))))
    whole = [replace(z, completion_ids=np.concatenate([z.completion_ids, a.completion_ids])) for z, a in parts]
    weights = [sample.weight for sample in weighted(whole, config)]
    both = [replace(s, weight=s.weight * w) for pair, w in zip(parts, weights, strict=True) for s in pair]
    return [sample for sample in both if len(sample.completion_ids)]


class VeriFree(Grpo):
    """GRPO's policy term on the reasoning, rewarded by the answer's likelihood (docs/algorithms/verifree.md)."""

    label = "VeriFree"
    uses = POLICY_KEYS - NO_REWARD_KEYS
    own_reward = True
    scores_answer = True
    scores_batch = True

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        builder = self.builder
        assert builder is not None, "begin() comes before the first step"
        sampled = [group.rollout for group in groups if group.rollout.completions]
        prompts = [rollout.prompt for rollout in sampled]
        cut = [[reasoned(c, r.prompt, builder) for c in r.completions if len(c.token_ids)] for r in sampled]
        rewards = self.likelihoods(cut, prompts, builder.lead_tokens)
        everything = np.concatenate([np.empty(0), *rewards])
        metrics = group_metrics([group for group in groups if group.rollout.completions], self.config) | {
            "answers/probability": float(everything.mean()) if len(everything) else 0.0,
            "answers/missing": float(sum(not len(each.statement) for of_group in cut for each in of_group)),
        }
        return TrainingBatch(step=step, samples=verifree_samples(cut, prompts, rewards, self.config), metrics=metrics)

    def likelihoods(self, groups: list[list[Reasoned]], prompts: list[Prompt], lead_tokens: int) -> list[Rewards]:
        """R = pi(a* | q, z) of each completion, over the answer's ids at the sampling temperature; 0 without one."""
        asked = [
            answer_sequence(prompt, each.chain, lead_tokens)
            for of_group, prompt in zip(groups, prompts, strict=True)
            for each in of_group
            if len(each.statement)
        ]
        assert self._score is not None, "attach() comes before the first step"
        scored: list[FloatArray] = self._score(asked, self.config.rollout.temperature)
        found = iter([float(np.exp(values.sum(dtype=np.float64))) for values in scored])
        return [np.array([next(found) if len(each.statement) else 0.0 for each in of]) for of in groups]
