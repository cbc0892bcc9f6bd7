"""One step's groups: prompts sampled and judged, in the order that the algorithm's choices ask for."""

from dataclasses import replace

from expo_ray.algorithms.base import Algorithm
from expo_ray.algorithms.explanations import in_scope
from expo_ray.config.schema import Config
from expo_ray.data.stream import PromptStream
from expo_ray.driver.actors import Actors
from expo_ray.driver.measure import Measurer
from expo_ray.driver.record import StepRecord
from expo_ray.messages import Group, Prompt
from expo_ray.rollout.lengths import LengthBook
from expo_ray.rollout.request import RolloutRequest, training_sampling


class Collector:
    """Samples and judges.

    Args:
        config: the run's configuration.
        algorithm: says what is needed at each step.
        stream: the prompts in training order.
        actors: who samples and judges.
        measurer: where the algorithm chooses explanations by their properties.
        lengths: how long completions have been so far.
    """

    def __init__(
        self,
        config: Config,
        algorithm: Algorithm,
        stream: PromptStream,
        actors: Actors,
        measurer: Measurer,
        lengths: LengthBook,
    ) -> None:
        self.config, self.algorithm, self.stream, self.actors = config, algorithm, stream, actors
        self.measurer, self.lengths = measurer, lengths
        self.sampling = training_sampling(config)

    def groups(self, step: int, record: StepRecord) -> list[Group]:
        """The step's groups: free completions and self-explanations of each prompt, with verdicts.

        Where the algorithm samples ahead (explanations made once, DPO pairs for k steps), the later steps'
        prompts are sampled here too and handed to `algorithm.collect`.
        """
        algorithm = self.algorithm
        free_ahead, explained_ahead = algorithm.rollout_ahead(step), algorithm.explanations_ahead(step)
        for later in range(step + 1, step + max(free_ahead, explained_ahead)):
            free, explained = later < step + free_ahead, later < step + explained_ahead
            early = self._sample(self.stream.prompts(later), free, explained, (step, later), record)
            record.count(algorithm.collect(early, step, self.measurer.for_choice(early, step, record)))
        groups = self._sample(self.stream.prompts(step), free_ahead > 0, explained_ahead > 0, (step, step), record)
        return self._refill(groups, step, record) if self.config.algo.dynamic_sampling == "refill" else groups

    def _sample(
        self, prompts: list[Prompt], free: bool, explained: bool, seed: tuple[int, ...], record: StepRecord
    ) -> list[Group]:
        rollout = self.config.rollout
        samples = rollout.samples_per_prompt if free else 0
        explanations = rollout.explanations_per_prompt if explained else 0
        if self.config.algo.explanation_scope == "every" or not samples or not explanations:
            return self._judged(self._requests(prompts, samples, explanations), seed, record)
        groups = self._judged(self._requests(prompts, samples, 0), seed, record)
        wanted = [i for i, group in enumerate(groups) if in_scope(group, self.config)]
        more = self._judged(self._requests([prompts[i] for i in wanted], 0, explanations), (*seed, 1), record)
        for i, extra in zip(wanted, more, strict=True):
            explained_rollout = replace(groups[i].rollout, explanations=extra.rollout.explanations)
            groups[i] = Group(explained_rollout, groups[i].verdicts, extra.explanation_verdicts)
        return groups

    def _requests(self, prompts: list[Prompt], samples: int, explanations: int) -> list[RolloutRequest]:
        return [RolloutRequest(p, samples, explanations, self.lengths.expected(p.problem.uid)) for p in prompts]

    def _refill(self, groups: list[Group], step: int, record: StepRecord) -> list[Group]:
        """Samples further prompts in the place of groups without signal, for at most refill_rounds rounds.

        Groups without signal stay in the batch: the algorithm leaves them out of its policy term, but they are
        the ones whose explanations matter.
        """
        missing = sum(not self.algorithm.has_signal(group) for group in groups)
        explained = self.algorithm.needs_explanations(step)
        for extra in range(self.config.algo.refill_rounds):
            if not missing:
                break
            prompts = self.stream.spare(step, extra, missing)
            fresh = self._sample(prompts, True, explained, (step, step, 2 + extra), record)
            groups = groups + fresh
            missing -= sum(map(self.algorithm.has_signal, fresh))
            record.count({"groups/refill_sampled": float(len(fresh))})
        record.count({"groups/refill_missing": float(missing)})
        return groups

    def _judged(self, requests: list[RolloutRequest], seed: tuple[int, ...], record: StepRecord) -> list[Group]:
        if not requests:
            return []
        with record.phase("generate"):
            rollouts = self.actors.rollouts.generate(requests, self.sampling, (self.config.seed, *seed))
        sampled = [completion for rollout in rollouts for completion in rollout.sampled]
        record.count({"tokens/generated": float(sum(len(c.token_ids) for c in sampled))})
        with record.phase("verify"):
            return self.actors.verifiers.judge(rollouts)
