"""The base class of all algorithms, and the schedules that they share."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

from expo_ray.algorithms.explanations import Restate
from expo_ray.algorithms.properties import SampleProperties
from expo_ray.algorithms.rewards import has_signal
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.algorithms import AlgorithmFacts
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
        return []

    def attach(self, folder: Path, score: Score, restate: Restate) -> None:
        """Hands the driver's instance the run folder, the learners' scoring and the prompts' way to state a gold
        answer, once, before the first step."""
        self.restate = restate

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
