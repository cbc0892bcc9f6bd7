"""The base class of all algorithms, the SFT that may go before one, and the schedules that they share."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

from expo_ray.algorithms.explanations import Restate, review_explanations, review_metrics, target_sample
from expo_ray.algorithms.properties import SampleProperties
from expo_ray.algorithms.rewards import group_metrics, has_signal
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.algorithms import AlgorithmFacts
from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import AlgoConfig, Config
from expo_ray.messages import FloatArray, Group, IntArray, Likeliest, Prompt, RolloutRequest, Term, TrainingBatch
from expo_ray.prompts.builder import PromptBuilder

Properties = list[list[SampleProperties]]
"""For each group, one entry for each of its explanations, in their order."""


class Score(Protocol):
    """`(context ids, scored ids)` pairs -> what the learners' policy makes of them, in nats; a single call for many.

    [T] log-probabilities of each pair's scored ids; with `likeliest` k > 0 the k likeliest tokens in the place of each.
    `reference`: under the reference policy, instead of the current one (`Algorithm.scores_reference`).
    """

    @overload
    def __call__(
        self, sequences: list[tuple[IntArray, IntArray]], temperature: float = 1.0, reference: bool = False
    ) -> list[FloatArray]: ...

    @overload
    def __call__(
        self, sequences: list[tuple[IntArray, IntArray]], temperature: float, reference: bool, likeliest: int
    ) -> list[Likeliest]: ...


Sample = Callable[[list[RolloutRequest]], list[Group]]
"""Samples and verifies further requests of a step; a group for each, in their order."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run starts from."""

    model: str
    """Identity of the base model, which is also the reference policy."""
    prompts: list[Prompt]
    """The training prompts."""
    stop_ids: tuple[int, ...]
    """Token ids that end a completion."""
    decode: Callable[[list[int]], str]
    """Ids -> text without special tokens."""
    builder: PromptBuilder | None = None
    """Made the prompts; None where nothing is sampled."""
    context: int = 0
    """Tokens of prompt and completion that the engines have room for; 0: not known yet."""
    model_context: int = 0
    """Tokens that the model itself has room for; 0: not known."""


class Algorithm(AlgorithmFacts):
    """One objective: which prompts are sampled when, the training batch made from groups, and its loss.

    The driver holds one instance and calls everything but `loss`; each learner rank holds another and calls `loss`
    only. What the driver's instance learns during a run is therefore not known to the ranks; it travels in the
    samples of the batch. A subclass defines `training_batch` and `loss`, and overrides the rest where it differs.
    """

    reference_terms: frozenset[Term] = frozenset()
    """Terms whose samples need the reference policy's log-probabilities, unless a sample brings their stored sum;
    empty: no reference policy is loaded."""
    stores_reference: bool = False
    """Whether samples usually bring that sum: the reference policy is loaded only when one of them does not."""
    scores_reference: bool = False
    """Whether the driver's instance scores with the reference policy, which is then loaded at the start."""
    needs_entropy: bool = False
    """Whether `loss` reads `PolicyTokens.entropy` at every step, without `algo.entropy_bonus`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.restate: Restate | None = None
        self.builder: PromptBuilder | None = None
        self._score: Score | None = None

    @property
    def loads_reference(self) -> bool:
        """Whether the learners load the reference policy at the start."""
        asked = self.scores_reference or self.config.algo.measure_base
        return asked or (bool(self.reference_terms) and not self.stores_reference)

    def begin(self, inputs: Inputs) -> list[str]:
        """Hands the driver's instance the run's inputs, once, before any actor starts.

        Returns:
            Sentences to show, about what is used of earlier runs.

        Raises:
            InputError: what the configuration uses of an earlier run does not fit these inputs.
        """
        self.builder = inputs.builder
        return []

    def attach(self, folder: Path, score: Score, restate: Restate) -> None:
        """Hands the driver's instance the run folder, the learners' scoring and the prompts' way to state a gold
        answer, once, before the first step."""
        self._score, self.restate = score, restate

    def rollout_ahead(self, step: int) -> int:
        """Number of steps, starting with this one, whose prompts get their completions at `step`.

        1 for the GRPO family. DPO: 0 where it uses stored pairs, k where it makes pairs for the next k steps.
        """
        return 1

    def explanations_ahead(self, step: int) -> int:
        """Number of steps, starting with this one, whose prompts get explanations at `step`; 0: none now."""
        return 0

    def skips_completions(self, uid: str) -> bool:
        """Whether what is stored for the problem replaces new completions, even at a step that samples them."""
        return False

    def skips_explanations(self, uid: str) -> bool:
        """Whether what is stored for the problem replaces new explanations, even at a step that samples them."""
        return False

    def needs_explanations(self, step: int) -> bool:
        """Whether explanations are sampled at `step`."""
        return self.explanations_ahead(step) > 0

    def needs_properties(self, step: int) -> bool:
        """Whether choosing among the explanations sampled at `step` needs their properties (`explanation_keep`)."""
        several = self.config.rollout.explanations_per_prompt > 1
        return several and self.config.algo.explanation_keep != "all" and self.needs_explanations(step)

    def guidance_tokens(self, prompts: list[Prompt]) -> int:
        """How many tokens longer than these prompts a prompt of `guide` may be; the engines get the room for it, as far
        as the model has it (`Inputs.context`)."""
        return 0

    def guide(self, groups: list[Group], step: int, sample: Sample) -> tuple[list[Group], dict[str, float]]:
        """Samples more for groups with completions, after prompts that tell more than the question.

        Called where completions are sampled, with `trainer.async_steps` in another thread than the rest: what it
        decides may depend on the groups, and on nothing that later steps change.

        Returns:
            The groups in their order, some with `guided`, and counts to log.
        """
        return groups, {}

    def has_signal(self, group: Group) -> bool:
        """Whether the policy term can learn from the group; `dynamic_sampling` drops or replaces those without."""
        return has_signal(group, self.config)

    def collect(self, groups: list[Group], step: int, properties: Properties | None = None) -> dict[str, float]:
        """Stores what was sampled ahead for the prompts of later steps. Returns counts to log."""
        return {}

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        """Makes the step's samples, each with its share of the batch-wide normaliser in `weight`.

        A group without explanations (DPO: without completions) uses what is stored for its problem. `properties` are
        given where `needs_properties`. `samples` may be empty: the update is skipped.
        """
        raise NotImplementedError

    def loss(self, tokens: PolicyTokens) -> LossOutput:
        """Returns the loss of a micro-batch of the samples that `training_batch` made."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint must keep of the driver's instance, as a value that JSON can hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict()`."""


ONLY_RIGHT = AlgoConfig(explanation_filter=True)
"""Of explanations, those that are right, whole and do not mention the answer's being given are the SFT's targets."""
WARM_UP: Term = "warm_up"
COPIED = (*AlgorithmFacts.__annotations__, "reference_terms", "stores_reference", "scores_reference", "needs_entropy")
"""Facts that `WarmUp` has of its algorithm."""


class WarmUp(Algorithm):
    """`trainer.sft_steps` steps of SFT, then an algorithm from its own step 0 on (docs/algorithms/warm_up.md).

    Args:
        config: the run's configuration.
        cls: the algorithm's class; its instance sees the steps that are left as all there are.
    """

    def __init__(self, config: Config, cls: type[Algorithm]) -> None:
        super().__init__(config)
        self.first, self.on = config.trainer.sft_steps, config.trainer.sft_on
        rest = deepcopy(config)
        rest.trainer.steps -= self.first
        rest.trainer.sft_steps = 0
        self.then = cls(rest)
        for name in COPIED:
            setattr(self, name, getattr(self.then, name))

    def begin(self, inputs: Inputs) -> list[str]:
        if self.on == "gold" and all(prompt.gold_ids is None for prompt in inputs.prompts):
            raise ConfigError(
                f"trainer.sft_steps={self.first} train on gold solutions, and no problem has one: give "
                "data.solution_key=KEY, or use trainer.sft_on=explanations"
            )
        return self.then.begin(inputs)

    def attach(self, folder: Path, score: Score, restate: Restate) -> None:
        super().attach(folder, score, restate)
        self.then.attach(folder, score, restate)

    def rollout_ahead(self, step: int) -> int:
        return 0 if step < self.first else self.then.rollout_ahead(step - self.first)

    def explanations_ahead(self, step: int) -> int:
        if step < self.first:
            return int(self.on == "explanations")
        return self.then.explanations_ahead(step - self.first)

    def skips_completions(self, uid: str) -> bool:
        return self.then.skips_completions(uid)

    def skips_explanations(self, uid: str) -> bool:
        return self.then.skips_explanations(uid)

    def needs_properties(self, step: int) -> bool:
        return step >= self.first and self.then.needs_properties(step - self.first)

    def guidance_tokens(self, prompts: list[Prompt]) -> int:
        return self.then.guidance_tokens(prompts)

    def guide(self, groups: list[Group], step: int, sample: Sample) -> tuple[list[Group], dict[str, float]]:
        return self.then.guide(groups, step - self.first, sample)

    def has_signal(self, group: Group) -> bool:
        return not group.rollout.completions or self.then.has_signal(group)

    def collect(self, groups: list[Group], step: int, properties: Properties | None = None) -> dict[str, float]:
        return self.then.collect(groups, step - self.first, properties)

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        if step >= self.first:
            self.then.restate = self.restate
            batch = self.then.training_batch(groups, step - self.first, properties)
            return TrainingBatch(step, batch.samples, batch.beta, batch.metrics)
        found: list[list[IntArray]]
        counts: dict[str, float] = {}
        if self.on == "gold":
            golds = [group.rollout.prompt.gold_ids for group in groups]
            found = [[] if gold is None else [gold] for gold in golds]
        else:
            reviews = [review_explanations(group, ONLY_RIGHT, None) for group in groups]
            counts = review_metrics(groups, reviews, ONLY_RIGHT)
            found = [
                [e.token_ids for e, review in zip(group.rollout.explanations, of, strict=True) if review.kept]
                for group, of in zip(groups, reviews, strict=True)
            ]
        tokens = sum(len(ids) for of in found for ids in of)
        samples = [
            target_sample(group.rollout.prompt.free_ids, ids, WARM_UP, 1.0 / tokens)
            for group, of in zip(groups, found, strict=True)
            for ids in of
        ]
        counts["warm_up/trained"] = float(len(samples))
        counts["warm_up/prompts_without"] = float(sum(not of for of in found))
        return TrainingBatch(step=step, samples=samples, metrics=group_metrics([], self.config) | counts)

    def loss(self, tokens: PolicyTokens) -> LossOutput:
        """- sum w log pi of the warm-up's samples, w = 1 / tokens of the batch; of others, the algorithm's loss."""
        if WARM_UP not in tokens.term:
            return self.then.loss(tokens)
        loss = -(tokens.weight[tokens.sample_of_token] * tokens.logprobs).sum()
        nothing, count = loss.new_zeros(()), loss.new_tensor(float(tokens.logprobs.numel()))
        metrics = {
            "loss/sft": (loss.detach(), nothing),
            "loss/total": (loss.detach(), nothing),
            "sft/logprob": (tokens.logprobs.detach().sum(), count),
        }
        if tokens.entropy is not None:
            metrics["policy/entropy"] = (tokens.entropy.detach().sum(), count)
        return LossOutput(loss, metrics)

    def state_dict(self) -> dict[str, Any]:
        return self.then.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.then.load_state_dict(state)


def beta_at(step: int, steps: int, algo: AlgoConfig) -> float:
    """Weight of the ExP-SFT term at `step`: `algo.beta` at step 0, falling to 0 at `steps` unless constant."""
    progress = min(max(step / steps, 0.0), 1.0)
    if algo.beta_schedule == "linear":
        return algo.beta * (1.0 - progress)
    if algo.beta_schedule == "cosine":
        return algo.beta * (1.0 + math.cos(math.pi * progress)) / 2
    return algo.beta


class Refresh:
    """The steps at which something that is stored by problem is sampled: every `period` steps, or once (period 0).

    A pure function of the step, except that a run which resumes with more steps than it had also samples where its
    earlier sampling ended.
    """

    def __init__(self, period: int, steps: int) -> None:
        self.period, self.steps = period, steps
        self.sampled_to = 0
        """Steps before this one have been sampled for; part of the checkpoint."""
        self._start = 0

    def ahead(self, step: int) -> int:
        """Number of steps, starting with this one, to sample for at `step`; 0: nothing now."""
        if step != self._start and (self.period == 0 or step % self.period):
            return 0
        end = step - step % self.period + self.period if self.period else self.steps
        return max(0, min(end, self.steps) - step)

    def trained(self, step: int) -> None:
        """Notes that `step` has its batch, so that what was sampled at it is in the checkpoint."""
        self.sampled_to = max(self.sampled_to, step + self.ahead(step))

    def resume(self, sampled_to: int) -> None:
        """Continues a run whose checkpoint had this `sampled_to`."""
        self.sampled_to = self._start = sampled_to
