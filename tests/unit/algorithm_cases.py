"""Hand-made groups and random micro-batches for the tests of the algorithms."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from expo_ray.algorithms.base import Inputs
from expo_ray.algorithms.tokens import PolicyTokens
from expo_ray.config.schema import Config
from expo_ray.messages import Completion, Group, Outcome, Problem, Prompt, Rollout, Term, Verdict


def config_with(**algo) -> Config:
    """The default configuration with some keys of `algo` set, four samples and one explanation a prompt."""
    config = Config()
    for key, value in algo.items():
        assert hasattr(config.algo, key), key
        setattr(config.algo, key, value)
    config.trainer.steps = 10
    config.rollout.max_completion_tokens = 16
    return config


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def completion(length: int, text: str = "so it is 5", first: int = 100, finish_reason: str = "stop") -> Completion:
    return Completion(
        token_ids=np.arange(first, first + length, dtype=np.int32),
        logprobs=np.full(length, -0.5, dtype=np.float32),
        text=text,
        finish_reason=finish_reason,
        weight_version=0,
    )


def group(
    outcomes: list[Outcome],
    lengths: list[int] | None = None,
    explanations: list[tuple[str, Outcome]] = (("it follows that x is 5", "correct"),),
    uid: str = "p",
    level: int | None = None,
    gold: bool = True,
) -> Group:
    """A group with the given verdicts. Explanation k has k + 3 ids from 1000 k on."""
    prompt = Prompt(
        problem=Problem(uid, "what is x", ("5",), "x is 5" if gold else None, level),
        free_ids=ids(1, 2, 3),
        conditioned_ids=ids(1, 2, 9, 3),
        gold_ids=ids(41, 42, 43, 44, 45) if gold else None,
        answer_span=ids(7, 8),
    )
    lengths = lengths or [4] * len(outcomes)
    told = [completion(k + 3, text, first=1000 * (k + 1)) for k, (text, _) in enumerate(explanations)]
    return Group(
        rollout=Rollout(prompt, [completion(n, first=100 * i) for i, n in enumerate(lengths, start=1)], told),
        verdicts=[Verdict(outcome) for outcome in outcomes],
        explanation_verdicts=[Verdict(outcome) for _, outcome in explanations],
    )


def restate(prompt: Prompt, target: np.ndarray) -> tuple[np.ndarray, str]:
    """The gold answer stated in place of a completion's last two ids."""
    return np.concatenate([target[:-2], prompt.answer_span, ids(6)]), "so x is 5"


@dataclass
class Arrays:
    """A random micro-batch as float64 arrays, one list entry a sample; the tests' own formulas read this."""

    logprobs: list[np.ndarray]
    entropy: list[np.ndarray]
    old: list[np.ndarray]
    rollout: list[np.ndarray]
    reference: list[np.ndarray]
    term: list[Term]
    weight: np.ndarray
    advantage: list[np.ndarray]
    unit: np.ndarray
    reference_sum: np.ndarray

    def take(self, chosen: list[int]) -> "Arrays":
        names = ("logprobs", "entropy", "old", "rollout", "reference", "advantage")
        lists = {k: [getattr(self, k)[i] for i in chosen] for k in names}
        arrays = {k: getattr(self, k)[chosen] for k in ("weight", "unit", "reference_sum")}
        return Arrays(**lists, **arrays, term=[self.term[i] for i in chosen])

    def tokens(self) -> PolicyTokens:
        """The same as the learner would hand it over, in float64, with leaves that take gradients."""

        def flat(parts: list[np.ndarray]) -> torch.Tensor:
            return torch.tensor(np.concatenate(parts), dtype=torch.float64)

        lengths = [len(part) for part in self.logprobs]
        return PolicyTokens(
            logprobs=flat(self.logprobs).requires_grad_(),
            entropy=flat(self.entropy).requires_grad_(),
            old_logprobs=flat(self.old),
            rollout_logprobs=flat(self.rollout),
            reference_logprobs=flat(self.reference),
            sample_of_token=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
            term=list(self.term),
            weight=torch.tensor(self.weight),
            advantage=flat(self.advantage),
            unit=torch.tensor(self.unit),
            reference_sum=torch.tensor(self.reference_sum),
        )


def random_arrays(terms: list[Term], seed: int = 0, spread: float = 0.5) -> Arrays:
    """Samples of 1 to 9 tokens, each with an advantage, whose ratios fall inside and outside usual clip ranges. Only
    policy samples have the engine's log-probabilities; units pair neighbours."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 10, size=len(terms))
    current = [random.normal(-1.5, 0.5, n) for n in lengths]
    old = [c + random.normal(0, spread, len(c)) for c in current]
    engine = [o + random.normal(0, spread, len(o)) for o in old]
    return Arrays(
        logprobs=current,
        entropy=[random.uniform(0.1, 2, n) for n in lengths],
        old=old,
        rollout=[e if t == "policy" else np.full(len(e), np.nan) for e, t in zip(engine, terms, strict=True)],
        reference=[c + random.normal(0, spread, len(c)) for c in current],
        term=list(terms),
        weight=random.uniform(0.01, 0.3, len(terms)),
        advantage=[
            random.normal(size=n) if t in ("policy", "expert") else np.zeros(n)
            for n, t in zip(lengths, terms, strict=True)
        ],
        unit=np.arange(len(terms)) // 2,
        reference_sum=np.full(len(terms), np.nan),
    )


def with_teacher(tokens: PolicyTokens, k: int = 3, seed: int = 2, taught: Sequence[int] | None = None) -> PolicyTokens:
    """The micro-batch with a teacher for the samples in `taught`, or for all."""
    random = np.random.default_rng(seed)
    teacher, student = (np.log(random.dirichlet(np.ones(k + 1), len(tokens.logprobs))[:, :k]) for _ in range(2))
    members = np.isin(tokens.sample_of_token.numpy(), range(len(tokens.term)) if taught is None else taught)
    return replace(
        tokens,
        teacher_logprobs=torch.tensor(np.where(members[:, None], teacher, np.nan)),
        likely_logprobs=torch.tensor(student, requires_grad=True),
    )


class Builder:
    """Stands in for a PromptBuilder: the last two ids of a completion are its answer statement."""

    style = "chat"
    lead_tokens = 1

    def states_answer(self, text: str) -> bool:
        return "is" in text

    def chain_of(self, target: np.ndarray) -> np.ndarray:
        return target[:-2]

    def restate(self, prompt: Prompt, target: np.ndarray) -> tuple[np.ndarray, str]:
        return restate(prompt, target)

    def decode(self, values: list[int]) -> str:
        return f"text {values}"

    def told(self, problems: Sequence[Problem], solutions: Sequence[str] | None = None) -> list[np.ndarray]:
        return [ids(1, 2, 40 + len(text), 3) for text in solutions or [p.answers[0] for p in problems]]

    asks_for_hints = True

    def guided(self, problem: Problem, kind: str, text: str) -> np.ndarray:
        return ids(1, 2, {"hint": 71, "ask_hint": 72, "beginning": 73}[kind], len(text), 3)


def score(sequences, temperature: float = 1.0, reference: bool = False) -> list[np.ndarray]:
    """The learners' scoring: equal log-probabilities, which follow from the context and the number of ids."""
    return [np.full(len(ids), logprob(context, len(ids)) / temperature, np.float32) for context, ids in sequences]


def logprob(context, count: int = 1) -> float:
    """What `score` gives each of that many ids after a context."""
    return float(np.float32(-0.1 * (1 + (int(np.sum(context)) + 3 * count) % 7)))


def inputs(prompts: list[Prompt]) -> Inputs:
    """What a run hands its algorithm."""
    builder = Builder()
    return Inputs("model", prompts, (0,), builder.decode, builder, 1000)
