"""POPE: on hard prompts, a second group that is shown the beginning of the gold solution (arXiv 2601.18779)."""

import zlib

import numpy as np

from expo_ray.algorithms.base import Inputs, Properties, Sample
from expo_ray.algorithms.explanations import in_scope
from expo_ray.algorithms.grpo import Grpo, policy_samples, sample_guided
from expo_ray.algorithms.rewards import group_metrics, has_signal
from expo_ray.config.algorithms import POLICY_KEYS
from expo_ray.messages import Group, IntArray, Prompt, TrainingBatch
from expo_ray.prompts.builder import PromptBuilder
from expo_ray.verifier.extract import THOUGHT_ENDS


def beginning(prompt: Prompt, step: int, seed: int, share: float, builder: PromptBuilder) -> IntArray:
    """[k] the first ids of the gold solution, without its answer statement; none without a solution.

    k of the K ids before the statement is drawn uniformly from 1 to share K, rounded; by run, step and problem.
    """
    if prompt.gold_ids is None:
        return np.empty(0, np.int32)
    chain = builder.chain_of(prompt.gold_ids)
    if prompt.thought:  # the solution's first ids close the thought that the prompt begins
        closed = (k for k in range(len(chain) + 1) if THOUGHT_ENDS in builder.decode(chain[:k].tolist()))
        chain = chain[next(closed) :]
    most = min(round(share * len(chain)), len(chain))
    uid = zlib.crc32(prompt.problem.uid.encode())
    return chain[: np.random.default_rng([seed, step, uid]).integers(1, most, endpoint=True) if most else 0]


class Pope(Grpo):
    """GRPO on prompts and, where they are hard, on guided ones beside them (docs/algorithms/pope.md)."""

    label = "POPE"
    needs_gold = True
    uses = POLICY_KEYS | {"explanation_scope", "explanation_threshold", "prefix_share"}

    def begin(self, inputs: Inputs) -> list[str]:
        self.inputs = inputs
        return super().begin(inputs)

    def guidance_tokens(self, prompts: list[Prompt]) -> int:
        """The longest beginning, and the request around it."""
        longest = max((len(p.gold_ids) for p in prompts if p.gold_ids is not None), default=0)
        return round(self.config.algo.prefix_share * longest) + 128

    def guide(self, groups: list[Group], step: int, sample: Sample) -> tuple[list[Group], dict[str, float]]:
        """Draws a guided group beside each group in scope."""
        builder, algo = self.inputs.builder, self.config.algo
        assert builder is not None, "the run made the prompts with one"
        guidance: dict[int, IntArray] = {}
        for i, group in enumerate(groups):
            prompt = group.rollout.prompt
            if in_scope(group, self.config):
                ids = beginning(prompt, step, self.config.seed, algo.prefix_share, builder)
                if text := builder.decode(ids.tolist()).strip() if len(ids) else "":
                    guidance[i] = builder.guided(prompt.problem, "beginning", text)
        return sample_guided(groups, guidance, self.config.rollout.samples_per_prompt, self.inputs, self.config, sample)

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        sampled = [group for group in groups if group.rollout.completions]
        guided = [group.guided for group in sampled if group.guided is not None]
        metrics = group_metrics(sampled, self.config)
        if self.config.algo.dynamic_sampling != "none":
            metrics["groups/dropped"] += sum(not has_signal(group, self.config) for group in guided)
        metrics |= {"gold/prompts_without": float(sum(group.rollout.prompt.gold_ids is None for group in sampled))}
        return TrainingBatch(step=step, samples=policy_samples([*sampled, *guided], self.config), metrics=metrics)

    def has_signal(self, group: Group) -> bool:
        return any(each is not None and has_signal(each, self.config) for each in (group, group.guided))
