"""One step's groups: prompts sampled and verified, in the loop or ahead of it."""

import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from expo_ray.algorithms.base import Algorithm, Properties, Sample
from expo_ray.algorithms.explanations import in_scope
from expo_ray.algorithms.properties import (
    GroupProperties,
    contrast_metrics,
    made_likelier,
    plan_properties,
    plan_trained,
    property_metrics,
    read_properties,
    trained_metrics,
    wrong_answers,
)
from expo_ray.config.schema import Config
from expo_ray.data.stream import PromptStream
from expo_ray.driver.actors import Actors
from expo_ray.driver.record import StepRecord
from expo_ray.leaks import mentions_given_answer
from expo_ray.learner.group import LearnerGroup
from expo_ray.messages import Group, Prompt, RolloutRequest, TrainingBatch
from expo_ray.prompts.builder import PromptBuilder
from expo_ray.rewards.functions import judged_by_gold, own_functions
from expo_ray.rollout.requests import LengthBook, training_sampling

GUIDED, TOLD_WRONG = 1000, 2000
"""The seed's last number in the first of Algorithm.guide's rounds, and for explanations of a wrong answer."""


class Measurer:
    """Measures with the current policy: the properties of explanations that the paper names (section 3), those of what
    is trained on, and whether explanations follow a wrong answer.

    Args:
        config: the run's configuration.
        algorithm: may need the properties to choose among explanations.
        learners: score the sequences.
        builder: knows where a completion's answer statement begins.
    """

    def __init__(self, config: Config, algorithm: Algorithm, learners: LearnerGroup, builder: PromptBuilder) -> None:
        self.config, self.algorithm, self.learners, self.builder = config, algorithm, learners, builder

    def properties(self, groups: list[Group], step: int, record: StepRecord) -> Properties | None:
        """The explanations' properties, group by group, also for the record; None at steps that do not need them.

        They are measured when the algorithm chooses by them, and every `algo.properties_every` steps.
        """
        if not groups or not (self.is_due(step) or self.algorithm.needs_properties(step)):
            return None
        with record.phase("properties"):
            found = self._measure(groups)
        record.properties = found
        record.count(property_metrics(found))
        return [of_group.explanations for of_group in found]

    def is_due(self, step: int) -> bool:
        """Whether `step` is one of every `algo.properties_every`."""
        every = self.config.algo.properties_every
        return every > 0 and step % every == 0

    def trained(self, groups: list[Group], batch: TrainingBatch, record: StepRecord) -> None:
        """Counts leaks in what the batch makes likelier, both properties of it, and with `algo.measure_base` its
        likelihood under the base policy."""
        if not self.is_due(batch.step) or not (samples := made_likelier(batch.samples)):
            return
        with record.phase("properties"):
            plan = plan_trained(samples, groups, self.builder.lead_tokens, self.builder.chain_of)
            logprobs = self.learners.score(plan.texts + plan.answers)
            base = self.learners.score(plan.texts, 1.0, True) if self.config.algo.measure_base else []
        leaks = [mentions_given_answer(self.builder.decode(s.completion_ids.tolist())) for s in samples]
        counts = {"trained/texts": float(len(samples)), "trained/leaked": sum(map(bool, leaks)) / len(samples)}
        record.count(counts | trained_metrics(plan, logprobs, base))

    def contrast(self, groups: list[Group], step: int, record: StepRecord, sample: Sample) -> None:
        """Samples explanations of a wrong answer for `algo.contrast_prompts` groups; nothing is trained on them."""
        if not self.config.algo.contrast_prompts or not self.is_due(step):
            return
        judged = [group for group in groups if judged_by_gold(group.rollout.prompt.problem, self.config.verifier)]
        record.count({"contrast/left_out": float(len(groups) - len(judged))} if len(judged) < len(groups) else {})
        with_answer = wrong_answers(judged, self.config.algo.contrast_prompts)
        if not with_answer:
            return
        prompts = [group.rollout.prompt for group, _ in with_answer]
        believed = [replace(p.problem, answers=(answer,)) for p, (_, answer) in zip(prompts, with_answer, strict=True)]
        told = self.builder.told(believed)
        # To the verifier the wrong answer is the gold one, so that "correct" is an explanation that ends in it.
        asked = [replace(p, problem=b, conditioned_ids=t) for p, b, t in zip(prompts, believed, told, strict=True)]
        found = sample([RolloutRequest(prompt, 0, 1) for prompt in asked])
        pairs, followed = [], []
        for prompt, group in zip(prompts, found, strict=True):
            (explanation,) = group.rollout.explanations
            if len(explanation.token_ids):
                pairs += [
                    (ids, explanation.token_ids)
                    for ids in (group.rollout.prompt.conditioned_ids, prompt.conditioned_ids)
                ]
                followed.append(group.explanation_verdicts[0].outcome == "correct")
        if pairs:
            record.count(contrast_metrics(followed, self.learners.score(pairs)))

    def for_choice(self, groups: list[Group], step: int, record: StepRecord) -> Properties | None:
        """The explanations' properties if the algorithm chooses among explanations sampled now; otherwise None."""
        if not groups or not self.algorithm.needs_properties(step):
            return None
        with record.phase("properties"):
            return [of_group.explanations for of_group in self._measure(groups)]

    def _measure(self, groups: list[Group]) -> list[GroupProperties]:
        plans = [plan_properties(group, self.builder.lead_tokens, self.builder.chain_of) for group in groups]
        scored = iter(self.learners.score([sequence for plan in plans for sequence in plan.sequences]))
        return [read_properties(plan, list(itertools.islice(scored, len(plan.sequences)))) for plan in plans]


Sampled = tuple[list[Group], StepRecord]


class Collector:
    """Samples and verifies what a step needs.

    Args:
        config: the run's configuration.
        algorithm: decides what is needed at each step.
        stream: the prompts in training order.
        actors: sample and verify.
        measurer: measures properties for an algorithm that chooses explanations by them.
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

        If the algorithm wants rollouts or explanations of later steps now, their prompts are sampled here too and
        handed to `algorithm.collect`.
        """
        free, explained = self.algorithm.rollout_ahead(step), self.algorithm.explanations_ahead(step)
        groups = self._sample(self.stream.prompts(step), free > 0, explained > 0, (step, step), record)
        if free > 1 or explained > 1:
            have = {group.rollout.prompt.problem.uid for group in groups if free > 1 or group.rollout.explanations}
            self._sample_ahead(have, step, free, explained, record)
        apart = StepRecord(step)  # what is sampled here is no part of the step's tokens, only of its time
        self.measurer.contrast(groups, step, record, lambda more: self._verified(more, (step, TOLD_WRONG), apart))
        record.merge_seconds(apart)
        return self._refill(groups, step, record) if self.config.algo.dynamic_sampling == "refill" else groups

    def _sample_ahead(self, have: set[str], step: int, free: int, explained: int, record: StepRecord) -> None:
        """Samples for the later steps among the next `free` and `explained` ones: each problem once, but those in
        `have`, although an epoch's end may lie between."""
        algorithm = self.algorithm
        for later in range(step + 1, step + max(free, explained)):
            with_free, with_explained = later < step + free, later < step + explained
            prompts = {prompt.problem.uid: prompt for prompt in self.stream.prompts(later)}
            wanted = [
                prompt
                for uid, prompt in prompts.items()
                if uid not in have
                and (
                    (with_free and not algorithm.skips_completions(uid))
                    or (with_explained and not algorithm.skips_explanations(uid))
                )
            ]
            have |= prompts.keys()
            ahead = StepRecord(step, record.status)
            early = self._sample(wanted, with_free, with_explained, (step, later), ahead)
            ahead.count(algorithm.collect(early, step, self.measurer.for_choice(early, step, ahead)))
            record.merge_ahead(ahead)

    def _sample(
        self, prompts: list[Prompt], free: bool, explained: bool, seed: tuple[int, ...], record: StepRecord
    ) -> list[Group]:
        groups = self._explained(prompts, free, explained, seed, record)
        if not free:
            return groups
        rounds = itertools.count(GUIDED)
        groups, counts = self.algorithm.guide(
            groups, record.step, lambda more: self._verified(more, (*seed, next(rounds)), record)
        )
        record.count(counts)
        return groups

    def _explained(
        self, prompts: list[Prompt], free: bool, explained: bool, seed: tuple[int, ...], record: StepRecord
    ) -> list[Group]:
        if self.config.algo.explanation_scope == "every" or not free or not explained:
            return self._verified(self._requests(prompts, free, explained), seed, record)
        groups = self._verified(self._requests(prompts, True, False), seed, record)
        wanted = [i for i, group in enumerate(groups) if in_scope(group, self.config)]
        more = self._verified(self._requests([prompts[i] for i in wanted], False, True), (*seed, 1), record)
        for i, extra in zip(wanted, more, strict=True):
            explained_rollout = replace(groups[i].rollout, explanations=extra.rollout.explanations)
            groups[i] = replace(groups[i], rollout=explained_rollout, explanation_verdicts=extra.explanation_verdicts)
        return groups

    def _requests(self, prompts: list[Prompt], free: bool, explained: bool) -> list[RolloutRequest]:
        rollout, algorithm = self.config.rollout, self.algorithm
        uids = [prompt.problem.uid for prompt in prompts]
        return [
            RolloutRequest(
                prompt,
                rollout.samples_per_prompt if free and not algorithm.skips_completions(uid) else 0,
                rollout.explanations_per_prompt if explained and not algorithm.skips_explanations(uid) else 0,
                self.lengths.expected(uid),
            )
            for uid, prompt in zip(uids, prompts, strict=True)
        ]

    def _refill(self, groups: list[Group], step: int, record: StepRecord) -> list[Group]:
        """Samples one more prompt for each group without signal, for at most refill_rounds rounds.

        Groups without signal stay in the batch: the algorithm leaves them out of its policy term, but their
        explanations are the ones that matter.
        """
        missing = sum(not self.algorithm.has_signal(group) for group in groups)
        explained = self.algorithm.needs_explanations(step)
        drawn = 0
        for extra in range(self.config.algo.refill_rounds):
            prompts = self.stream.spare(step, drawn, missing)
            if not prompts:
                break
            drawn += len(prompts)
            fresh = self._sample(prompts, True, explained, (step, step, 2 + extra), record)
            groups = groups + fresh
            missing -= sum(map(self.algorithm.has_signal, fresh))
            record.count({"groups/refill_sampled": float(len(fresh))})
        record.count({"groups/refill_missing": float(missing)})
        return groups

    def _verified(self, requests: list[RolloutRequest], seed: tuple[int, ...], record: StepRecord) -> list[Group]:
        if not requests:
            return []
        with record.phase("generate"):
            rollouts = self.actors.rollouts.generate(requests, self.sampling, (self.config.seed, *seed))
        sampled = [completion for rollout in rollouts for completion in rollout.sampled]
        record.count({"tokens/generated": float(sum(len(c.token_ids) for c in sampled))})
        with record.phase("verify"):
            groups = self.actors.verifiers.verify(rollouts)
        if not own_functions(self.config.reward):
            return groups
        with record.phase("reward"):
            return self.actors.rewards.score(groups, self.config.reward, self.config.data)


class Ahead:
    """Samples up to `trainer.async_steps` steps ahead of the loop in a thread; with 0, in the loop itself.

    Args:
        config: the run's configuration.
        collector: samples and verifies one step's groups.
    """

    def __init__(self, config: Config, collector: Collector) -> None:
        self.steps_ahead, self.last = config.trainer.async_steps, config.trainer.steps
        self.collector = collector
        # One thread, so that the engines always work on the step that the loop needs next.
        self._sampler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") if self.steps_ahead else None
        self._begun: dict[int, Future[Sampled]] = {}

    def groups(self, step: int, record: StepRecord) -> list[Group]:
        """Returns the step's groups and starts sampling the next steps'. Raises what sampling raised."""
        if self._sampler is None:
            groups = self.collector.groups(step, record)
        else:
            self._begin(step)
            with record.phase("wait"):
                groups, background = self._begun.pop(step).result()
            record.merge_background(background)
        self.collector.lengths.learn(groups)
        self.collector.stream.learn(step, groups)
        for later in range(step + 1, min(step + 1 + self.steps_ahead, self.last)):
            self._begin(later)
        return groups

    def settle(self) -> None:
        """Waits until the engines are free; keeps what was sampled."""
        for future in list(self._begun.values()):
            future.exception()

    def close(self) -> None:
        """Waits for the step that is being sampled and drops what was sampled ahead."""
        if self._sampler is not None:
            self._sampler.shutdown(wait=True, cancel_futures=True)

    def _begin(self, step: int) -> None:
        if step not in self._begun and self._sampler is not None:
            self._begun[step] = self._sampler.submit(self._sample, step)

    def _sample(self, step: int) -> Sampled:
        record = StepRecord(step)
        return self.collector.groups(step, record), record
