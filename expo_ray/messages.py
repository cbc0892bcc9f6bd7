"""What travels between the actors, in the order of the loop.

    Problem -> Prompt -> Rollout -> Group -> TrainingBatch -> UpdateReport -> SyncProof

Token ids are int32 NumPy arrays, log-probabilities float32 arrays in nats. A completion's ids are the
ids that the engine sampled: nothing here is ever tokenised a second time.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]

Outcome = Literal["correct", "wrong", "no_answer", "timeout", "error"]
"""What the verifier says of one answer; `timeout` and `error` are not `wrong` (see expo_ray.verifier)."""

Term = Literal["policy", "sft", "chosen", "rejected", "conditioned"]
"""Which part of an objective a training sample belongs to (see expo_ray.algorithms)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem as the data set has it, texts only."""

    uid: str
    question: str
    answers: tuple[str, ...]
    """Gold answers; any one of them counts as right. Never empty."""
    solution: str | None = None
    """The expert's solution, ending in the answer; None where the data has none."""
    level: int | None = None
    """Difficulty, 1 (easy) to 5 (hard); None where the data says nothing."""
    kind: str = ""
    """Subject ("Algebra") or task name."""
    meta: dict[str, Any] = field(default_factory=dict)
    """What a task's own scorer needs beside the answers (reasoning-gym entries)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem with its two prompts, tokenised once."""

    problem: Problem
    free_ids: IntArray
    """[P] the prompt that shows the question only."""
    conditioned_ids: IntArray
    """[P'] the prompt that also shows the gold answer and asks for a derivation."""
    gold_ids: IntArray | None = None
    """[T] the expert solution as a completion of `free_ids`, with its stop token; None without a solution."""
    answer_span: IntArray | None = None
    """[A] ids that state the gold answer at the end of a completion (properties of a sample, paper section 3)."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation of a prompt."""

    token_ids: IntArray
    """[T] sampled ids; the last one is the stop token when `finish_reason` is "stop"."""
    logprobs: FloatArray
    """[T] nats: log-probability of each id under the distribution that was sampled from (temperature applied)."""
    text: str
    """The ids decoded once, special tokens left out."""
    finish_reason: Literal["stop", "length"]
    weight_version: int
    """The policy update after which the engine's weights were sampled from."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the rollout workers return for one prompt."""

    prompt: Prompt
    completions: list[Completion]
    """samples_per_prompt free completions, o_i ~ pi(. | q)."""
    explanations: list[Completion]
    """explanations_per_prompt self-explanations, c~ ~ pi(. | q, a*); may be empty."""

    @property
    def sampled(self) -> list[Completion]:
        """The completions, then the explanations."""
        return [*self.completions, *self.explanations]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier found in one response."""

    outcome: Outcome
    extracted: str | None = None
    """The answer found in the response; None when there is none."""
    method: str = "none"
    """What decided: exact, numeric, symbolic, set, interval, matrix, text, none."""
    ms: float = 0.0
    """Wall-clock milliseconds spent on it."""
    credit: float = 0.0
    """Of a wrong answer: the share of the reward that it earns all the same, 0 to below 1."""


@dataclass(frozen=True, slots=True)
class Group:
    """A rollout with a verdict for each of its completions and explanations, in their order."""

    rollout: Rollout
    verdicts: list[Verdict]
    explanation_verdicts: list[Verdict]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One token sequence of the update: `prompt_ids` is context, each id of `completion_ids` is scored."""

    prompt_ids: IntArray
    completion_ids: IntArray
    term: Term
    weight: float
    """Factor on each of its tokens' loss. It holds the batch-wide normaliser, so that the sum over any cut
    of the batch into micro-batches and ranks is the same number."""
    advantage: float = 0.0
    rollout_logprobs: FloatArray | None = None
    """[T] as the engine sampled them; None where no importance ratio is taken."""
    unit: int = -1
    """Samples of the same unit (a DPO pair) stay in one micro-batch; -1: on its own."""
    reference_logprob: float | None = None
    """Sum over the completion of the reference's log-probabilities where they were stored (offline pairs)."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """One step's samples; every learner rank gets all of it and takes its own share."""

    step: int
    samples: list[TrainingSample]
    beta: float = 0.0
    """Weight of the ExP-SFT term at this step (already in the samples' `weight`; here for the record)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What was counted while the batch was made (groups without signal, explanations kept, leaks, ...)."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What the learners say of one update, already summed over ranks."""

    metrics: dict[str, float]
    """Loss terms, KL, entropy, clip fraction, gradient norm, learning rate, mismatch (docs/metrics.md)."""
    trained_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SyncProof:
    """Evidence that every rollout engine holds the learners' weights after a sync."""

    weight_version: int
    worker_versions: list[int]
    max_difference: float
    """Largest absolute difference, in nats, of a probe token's log-probability between learner and engines."""
    mean_difference: float
    """Mean over the probe tokens of the engine in which it is largest."""
    tolerance: float
    mean_tolerance: float
    bytes_sent: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What to sample for one prompt."""

    prompt: Prompt
    samples: int
    """Free completions; may be 0."""
    explanations: int
    """Self-explanations; may be 0."""
    expected_tokens: float = 0.0
    """Of one of its completions (expo_ray.rollout.requests); decides where and when it is sampled."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn."""

    temperature: float
    top_p: float
    top_k: int
    """0: no limit."""
    max_tokens: int
