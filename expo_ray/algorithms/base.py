"""What an algorithm is: it says what to sample, turns groups into a training batch, and scores tokens."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from expo_ray.algorithms.properties import SampleProperties
from expo_ray.algorithms.tokens import LossOutput, PolicyTokens
from expo_ray.config.schema import AlgoConfig
from expo_ray.messages import FloatArray, Group, IntArray, Term, TrainingBatch


def beta_at(step: int, steps: int, algo: AlgoConfig) -> float:
    """Weight of the ExP-SFT term at `step` of `steps`: all of `algo.beta` at step 0, falling to 0 at `steps`.

    Raises ValueError for an unknown `beta_schedule`.
    """
    progress = min(max(step / steps, 0.0), 1.0)
    if algo.beta_schedule == "constant":
        return algo.beta
    if algo.beta_schedule == "linear":
        return algo.beta * (1.0 - progress)
    if algo.beta_schedule == "cosine":
        return algo.beta * (1.0 + math.cos(math.pi * progress)) / 2
    raise ValueError(f"algo.beta_schedule={algo.beta_schedule}: expected constant, linear or cosine")


def steps_ahead(step: int, steps: int, period: int) -> int:
    """For how many steps' prompts, this step's first, something is sampled at `step`; 0: nothing now.

    period 1: this step's prompts at each step. period k: every k steps, for the next k steps. period 0: at the
    first step, for all steps.
    """
    if period == 0:
        return steps if step == 0 else 0
    return min(period, steps - step) if step % period == 0 else 0


Properties = list[list[SampleProperties]]
"""For each group, one entry for each of its explanations, in their order."""

Score = Callable[[list[tuple[IntArray, IntArray]]], list[FloatArray]]
"""`(context ids, scored ids)` pairs -> their tokens' log-probabilities under the policy, temperature 1."""


class Algorithm(Protocol):
    """One objective. The driver holds one instance (all methods but `loss`), each learner rank another (`loss`)."""

    name: str
    reference_terms: frozenset[Term]
    """The learner must compute the reference policy's log-probabilities of these terms' samples; empty: of none."""

    def rollout_ahead(self, step: int) -> int:
        """For how many steps' prompts, this step's first, completions are sampled at `step`.

        1 for the GRPO family. DPO: 0 where stored pairs serve; k where pairs are made for the next k steps.
        """

    def explanations_ahead(self, step: int) -> int:
        """For how many steps' prompts, this step's first, explanations are sampled at `step`; 0: none now."""

    def needs_explanations(self, step: int) -> bool:
        """Whether explanations are sampled at `step`."""

    def needs_properties(self, step: int) -> bool:
        """Whether the choice among explanations sampled at `step` needs their properties (`explanation_keep`)."""

    def has_signal(self, group: Group) -> bool:
        """Whether the group teaches the policy term anything (`dynamic_sampling`)."""

    def collect(self, groups: list[Group], step: int, properties: Properties | None = None) -> dict[str, float]:
        """Takes in what was sampled ahead, for the prompts of later steps; returns counts to log."""

    def training_batch(self, groups: list[Group], step: int, properties: Properties | None = None) -> TrainingBatch:
        """The step's samples. A group without explanations (DPO: without completions) uses what is stored of its
        problem. `samples` may be empty: then there is nothing to update from.

        Raises ValueError where `needs_properties` and a choice must be made without `properties`.
        """

    def before_first_update(self, folder: Path, score: Score) -> None:
        """Called once in a run, after the first `training_batch` and while policy and reference are the same: what
        must be known of the reference for later, or kept in the run folder, is dealt with here."""

    def loss(self, tokens: PolicyTokens) -> LossOutput:
        """Loss of a micro-batch of the samples that `training_batch` made."""

    def state_dict(self) -> dict[str, Any]:
        """What the driver's instance remembers from step to step; JSON can hold it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict()`."""
