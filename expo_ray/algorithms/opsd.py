"""OPSD: the policy's own answers, taught token by token by the same policy that is told more (arXiv 2601.18734)."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from expo_ray.algorithms.base import Inputs, Properties
from expo_ray.algorithms.grpo import Grpo, group_samples, weighted
from expo_ray.algorithms.rewards import group_metrics, shaped_advantages
from expo_ray.config.algorithms import POLICY_KEYS, TEACHER_KEYS
from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config
from expo_ray.messages import Group, IntArray, Likeliest, TrainingBatch, TrainingSample


class Opsd(Grpo):
    """On-policy self-distillation (docs/algorithms/opsd.md): every completion has a teacher, which sees the answer.

    A subclass says in `contexts` what the teacher of each completion sees.
    """

    label = "OPSD"
    scores_batch = True
    uses = (POLICY_KEYS - {"dynamic_sampling", "refill_rounds"}) | TEACHER_KEYS | {"policy_coef", "teacher_context"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.scores_reference = config.algo.teacher == "reference" and config.algo.distill_coef > 0
        self.room = sys.maxsize
        """Tokens that the model has room for."""

    def begin(self, inputs: Inputs) -> list[str]:
        self.room = inputs.model_context or sys.maxsize
        lacking = [prompt.problem.uid for prompt in inputs.prompts if prompt.problem.solution is None]
        if self.config.algo.teacher_context == "solution" and lacking:
            raise ConfigError(
                f"algo.teacher_context=solution needs a solution for each problem, and {len(lacking)} of "
                f"{len(inputs.prompts)} have none (the first: {lacking[0]}): use algo.teacher_context=answer"
            )
        return super().begin(inputs)

    def contexts(self, groups: list[Group]) -> list[list[IntArray | None]]:
        """For each completion of each group, the ids of the prompt that its teacher sees; None: it has no teacher."""
        if self.config.algo.teacher_context == "solution":
            assert self.builder is not None, "begin() comes before the first step"
            problems = [group.rollout.prompt.problem for group in groups]
            shown = self.builder.told(problems, [problem.solution or "" for problem in problems])
        else:
            shown = [group.rollout.prompt.conditioned_ids for group in groups]
        return [[ids] * len(group.rollout.completions) for group, ids in zip(groups, shown, strict=True)]

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        """Every completion that is not empty, with `policy_coef` times its advantage (0 without a verdict)."""
        algo, metrics = self.config.algo, group_metrics(groups, self.config)
        samples: list[TrainingSample] = []
        contexts: list[IntArray | None] = []
        for group, of_group in zip(groups, self.contexts(groups), strict=True):
            lengths = np.array([len(completion.token_ids) for completion in group.rollout.completions])
            advantages = algo.policy_coef * np.nan_to_num(shaped_advantages(group, self.config))
            samples += group_samples(group, np.where(lengths > 0, advantages, np.nan))
            contexts += [context for context, length in zip(of_group, lengths, strict=True) if length]
        samples, counts = self.taught(weighted(samples, self.config), contexts)
        return TrainingBatch(step=step, samples=samples, metrics=metrics | counts)

    def taught(
        self, samples: list[TrainingSample], contexts: Sequence[IntArray | None]
    ) -> tuple[list[TrainingSample], dict[str, float]]:
        """Gives each sample the signal of its teacher, which is the policy, or the reference policy, after `contexts`.

        With `distill_divergence: sampled`, what a token's log-probability rises by under the teacher is added to its
        advantage, times `distill_coef`. Otherwise the sample brings the teacher's likeliest tokens. A context that
        leaves the model no room for the sample counts as none.

        Returns:
            The samples in their order, and counts to log.
        """
        algo, temperature = self.config.algo, self.config.rollout.temperature
        shown = [(i, context) for i, context in enumerate(contexts) if context is not None] if algo.distill_coef else []
        told = [(i, ids) for i, ids in shown if len(ids) + len(samples[i].completion_ids) <= self.room]
        counts = {
            "distill/samples": float(len(told)),
            "distill/without_teacher": float(len(samples) - len(told)),
            "distill/too_long": float(len(shown) - len(told)),
        }
        if not told:
            return samples, counts
        assert self._score is not None, "attach() comes before the first step"
        found, fixed = list(samples), algo.teacher == "reference"
        after = [(context, samples[i].completion_ids) for i, context in told]
        if algo.distill_divergence != "sampled":
            likeliest: list[Likeliest] = self._score(after, temperature, fixed, algo.distill_top_k)
            for (i, _), teacher in zip(told, likeliest, strict=True):
                found[i] = replace(found[i], teacher=teacher)
            return found, counts
        before = [(samples[i].prompt_ids, samples[i].completion_ids) for i, _ in told]
        # One call where both are the same policy: a collective call costs more than its share of the sequences.
        both = self._score(before, temperature) + self._score(after, temperature, True) if fixed else None
        both = self._score(before + after, temperature) if both is None else both
        rises = [teacher - own for own, teacher in zip(both[: len(told)], both[len(told) :], strict=True)]
        for (i, _), rise in zip(told, rises, strict=True):
            signal = np.clip(rise, -algo.distill_clip, algo.distill_clip) if algo.distill_clip else rise
            advantages = (found[i].advantage + algo.distill_coef * signal).astype(np.float32)
            found[i] = replace(found[i], token_advantages=advantages)
        return found, counts | {"distill/rise": float(np.mean(np.concatenate(rises)))}
