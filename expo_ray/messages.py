"""What travels between the actors, in the order of the loop.

    Problem -> Prompt -> Rollout -> Group -> TrainingBatch -> UpdateReport -> SyncProof

Token ids are int32 NumPy arrays, log-probabilities float32 arrays in nats. A completion's ids are the ids that the
engine sampled: nothing here is ever tokenised a second time.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]

Outcome = Literal["correct", "wrong", "no_answer", "timeout", "error"]
"""The verifier's result for one answer; `timeout` and `error` do not count as `wrong` (see expo_ray.verifier)."""

Term = str
"""The part of an objective that a training sample belongs to: policy, sft, conditioned, distill (losses.grpo_loss),
chosen, rejected (losses.dpo_loss), or one of the algorithm's own, which its `loss` knows."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of the data set, as text."""

    uid: str
    question: str
    answers: tuple[str, ...]
    """Gold answers, of which any one is correct. Never empty."""
    solution: str | None = None
    """The expert's solution, ending in the answer; None if the data has none."""
    level: int | None = None
    """Difficulty, 1 (easy) to 5 (hard); None if the data has none."""
    kind: str = ""
    """Subject ("Algebra") or task name."""
    task: str = ""
    """The verifier task that grades it (`data.verifier_key`); empty: `verifier.name`."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The record's other columns, as JSON could hold them: for tasks and rewards that read them."""
    turns: tuple[tuple[str, str], ...] = ()
    """(role, text) of each message, if the record's question is a list of them; `question` is the last one's text."""
    source: str = ""
    """Name of its data set, if there are several (`data.sources`, `data.eval_sources`)."""
    weight: float = 1.0
    """Its data set's share of the training prompts, relative to the other sources'."""
    pass_rate: float | None = None
    """Share of right completions in an earlier evaluation (`data.pass_rates`)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem with its two prompts, tokenised once."""

    problem: Problem
    free_ids: IntArray
    """[P] the prompt that shows only the question."""
    conditioned_ids: IntArray
    """[P'] the prompt that also shows the gold answer and asks for a derivation."""
    gold_ids: IntArray | None = None
    """[T] the expert solution as a completion of `free_ids`, with its stop token; None without a solution."""
    answer_span: IntArray | None = None
    """[A] ids that state the gold answer at the end of a completion (for the properties of paper section 3)."""
    thought: str = ""
    """The end of both prompts where their template begins a thought, such as `<think>`; the texts of completions begin
    with it."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation of a prompt."""

    token_ids: IntArray
    """[T] sampled ids; the last one is the stop token when `finish_reason` is "stop"."""
    logprobs: FloatArray
    """[T] nats: log-probability of each id under the distribution that was sampled from (temperature applied)."""
    text: str
    """`Prompt.thought`, then the decoded ids without special tokens."""
    finish_reason: Literal["stop", "length"]
    weight_version: int
    """Number of updates that the engine's weights had had when sampling began."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The samples of one prompt."""

    prompt: Prompt
    completions: list[Completion]
    """samples_per_prompt free completions, o_i ~ pi(. | q)."""
    explanations: list[Completion]
    """explanations_per_prompt self-explanations, c~ ~ pi(. | q, a*); may be empty."""

    @property
    def sampled(self) -> list[Completion]:
        """All completions, then all explanations."""
        return [*self.completions, *self.explanations]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verifier's verdict on one response."""

    outcome: Outcome
    extracted: str | None = None
    """The answer found in the response; None if there is none."""
    method: str = "none"
    """What decided: exact, numeric, symbolic, set, interval, matrix, text; form, limit, failed; none."""
    ms: float = 0.0
    """Wall-clock milliseconds spent on it."""
    credit: float = 0.0
    """Share of the reward that a wrong answer still earns, at least 0 and below 1."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward function gave for one completion."""

    value: float | None
    """None: it could not decide, or it failed."""
    failure: str = ""
    """Why it failed, after every retry; empty if it did not."""
    ms: float = 0.0
    """Wall-clock milliseconds of its last call; of a batch, the share of one completion."""


@dataclass(frozen=True, slots=True)
class Group:
    """A rollout with the verdicts on its completions and explanations, in their order."""

    rollout: Rollout
    verdicts: list[Verdict]
    explanation_verdicts: list[Verdict]
    scores: dict[str, list[Score]] = field(default_factory=dict)
    """Name in `reward.functions` -> what it gave for each free completion; without an entry for the verifier."""
    guided: "Group | None" = None
    """Further completions of the problem, after a prompt of their own that tells more (Algorithm.guide)."""


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The k likeliest next tokens at each of T places, most likely first, under the policy that scored them."""

    ids: IntArray
    """[T, k]"""
    logprobs: FloatArray
    """[T, k] nats"""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One token sequence of the update: `prompt_ids` is context, each id of `completion_ids` is scored."""

    prompt_ids: IntArray
    completion_ids: IntArray
    term: Term
    weight: float
    """Factor on the loss of each of its tokens. It includes the batch-wide normaliser, so that the sum is the same
    however the batch is cut into micro-batches and ranks."""
    advantage: float = 0.0
    token_advantages: FloatArray | None = None
    """[T] takes the place of `advantage`, token by token; zeros leave tokens out of the policy term."""
    teacher: Likeliest | None = None
    """What a teacher would write at each of its T places, to be distilled; k is the same in the whole batch."""
    rollout_logprobs: FloatArray | None = None
    """[T] from the engine; None if the term has no importance ratio."""
    unit: int = -1
    """Samples of the same unit (a DPO pair) stay in one micro-batch; -1 for a sample on its own."""
    reference_logprob: float | None = None
    """Sum of the reference policy's log-probabilities over the completion, if it was stored (offline pairs)."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """One step's samples. Every learner rank gets the whole batch and takes its share."""

    step: int
    samples: list[TrainingSample]
    beta: float = 0.0
    """Weight of the ExP-SFT term at this step, for the record; the samples' `weight` already includes it."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Counts from making the batch (groups without signal, explanations kept, leaks, ...)."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What the learners measured in one update, merged over ranks."""

    metrics: dict[str, float]
    """Loss terms, KL, entropy, clip fraction, gradient norm, learning rate, mismatch (docs/metrics.md)."""
    trained_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SyncProof:
    """Evidence that every rollout engine has the learners' weights after a sync."""

    weight_version: int
    worker_versions: list[int]
    max_difference: float
    """Largest absolute difference, in nats, of a probe token's log-probability between learner and engines."""
    mean_difference: float
    """Mean difference over the probe tokens, of the engine where it is largest."""
    tolerance: float
    mean_tolerance: float
    bytes_sent: int
    seconds: float
    tensors_compared: int = 0
    """Tensors whose bits were compared (sync.digest_every); 0 if they were not."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What to sample for one prompt."""

    prompt: Prompt
    samples: int
    """Free completions; may be 0."""
    explanations: int
    """Self-explanations; may be 0."""
    expected_tokens: float = 0.0
    """Expected length of one of its completions, by which requests are balanced and ordered."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are sampled."""

    temperature: float
    top_p: float
    top_k: int
    """0: no limit."""
    max_tokens: int
