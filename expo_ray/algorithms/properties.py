"""The two properties of a good positive sample (paper, section 3): what to score, and what follows from the scores.

1. in distribution: mean over tokens of log pi(c | q);
2. learning signal: log pi(a* | q, c) - log pi(a* | q), and the same relative to the policy's own free chains.

To score a* after a chain c, c is cut before its own answer statement and the ids of `Prompt.answer_span` follow: a
lead ("The final answer is \\boxed{"), which is context, then the answer's ids, which are scored. Nothing is tokenised
again, which is an approximation: at the joint the engine might have sampled other ids for the same text, such as a
merged blank line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from expo_ray.messages import FloatArray, Group, IntArray, TrainingSample

TRAINED_TEXTS = 64
"""The most training samples that are measured in a step, evenly spaced over all of them."""

CutChain = Callable[[IntArray], IntArray]
"""Cuts a completion's ids before its final answer statement (PromptBuilder.chain_of); of no ids it returns those that
an answer right after the prompt needs before it, usually none."""


@dataclass(frozen=True, slots=True)
class SampleProperties:
    """One sample's properties, in nats, under the policy that scored it."""

    mean_logprob: float
    """Mean over the sample's tokens of log pi(token | q, before)."""
    answer_logprob: float
    """log pi(a* | q, c), summed over the answer's tokens."""
    answer_rise: float
    """answer_logprob - log pi(a* | q)."""
    rise_over_free: float
    """answer_logprob - its mean over the group's measured free chains; NaN if none was measured."""


@dataclass(frozen=True, slots=True)
class GroupProperties:
    """A group's measured samples."""

    explanations: list[SampleProperties]
    gold: SampleProperties | None
    free: list[SampleProperties]
    """The group's first free completions, up to the number requested."""


@dataclass(frozen=True, slots=True)
class PropertyPlan:
    """The sequences to score for one group: `(context ids, scored ids)`, at temperature 1.

    The answer alone comes first. Then follow two sequences for each explanation, for the gold solution if there is
    one, and for each measured free completion: the sample itself, and the answer after its chain.
    """

    sequences: list[tuple[IntArray, IntArray]]
    explanations: int
    has_gold: bool


def plan_properties(group: Group, lead_tokens: int, chain_of: CutChain, free_samples: int = 2) -> PropertyPlan:
    """Plans what to score for the properties of a group's explanations, gold solution and first free completions.

    `lead_tokens` is the number of ids of `answer_span` that are context (PromptBuilder.lead_tokens).
    Raises ValueError if the prompt has no answer span.
    """
    prompt = group.rollout.prompt
    if prompt.answer_span is None:
        raise ValueError(f"problem {prompt.problem.uid}: its prompt has no answer span, properties cannot be measured")
    lead, answer = prompt.answer_span[:lead_tokens], prompt.answer_span[lead_tokens:]
    samples = [e.token_ids for e in group.rollout.explanations]
    if prompt.gold_ids is not None:
        samples.append(prompt.gold_ids)
    samples += [c.token_ids for c in group.rollout.completions[:free_samples]]
    alone = chain_of(prompt.free_ids[:0])
    sequences = [(np.concatenate([prompt.free_ids, alone, lead]), answer)]
    for ids in samples:
        sequences.append((prompt.free_ids, ids))
        sequences.append((np.concatenate([prompt.free_ids, chain_of(ids), lead]), answer))
    return PropertyPlan(sequences, len(group.rollout.explanations), prompt.gold_ids is not None)


def read_properties(plan: PropertyPlan, logprobs: Sequence[FloatArray]) -> GroupProperties:
    """Computes the properties from the log-probabilities of the plan's sequences, in the plan's order.

    Raises ValueError if there are more or fewer of them than sequences.
    """
    if len(logprobs) != len(plan.sequences):
        raise ValueError(f"{len(plan.sequences)} sequences were planned, {len(logprobs)} were scored")
    sums = [float(np.sum(values, dtype=np.float64)) for values in logprobs]
    alone, own, answers = sums[0], sums[1::2], sums[2::2]
    lengths = [len(ids) for _, ids in plan.sequences[1::2]]
    first_free = plan.explanations + plan.has_gold
    free_mean = float(np.mean(answers[first_free:])) if len(answers) > first_free else float("nan")
    found = [
        SampleProperties(total / length if length else 0.0, answer, answer - alone, answer - free_mean)
        for total, length, answer in zip(own, lengths, answers, strict=True)
    ]
    gold = found[plan.explanations] if plan.has_gold else None
    return GroupProperties(found[: plan.explanations], gold, found[first_free:])


def property_metrics(groups: Sequence[GroupProperties]) -> dict[str, float]:
    """Mean and 10th, 50th and 90th percentile of each property, by kind of sample.

    Names: properties/{explanation,gold,free}/{mean_logprob,answer_rise,rise_over_free}/{mean,p10,p50,p90}.
    """
    kinds = {
        "explanation": [p for g in groups for p in g.explanations],
        "gold": [g.gold for g in groups if g.gold is not None],
        "free": [p for g in groups for p in g.free],
    }
    metrics: dict[str, float] = {}
    for kind, samples in kinds.items():
        for name in ("mean_logprob", "answer_rise", "rise_over_free"):
            values = np.array([getattr(sample, name) for sample in samples], dtype=np.float64)
            values = values[~np.isnan(values)]
            if len(values):
                p10, p50, p90 = np.percentile(values, [10, 50, 90])
                figures = {"mean": values.mean(), "p10": p10, "p50": p50, "p90": p90}
                metrics |= {f"properties/{kind}/{name}/{k}": float(v) for k, v in figures.items()}
    return metrics


def made_likelier(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    """The samples whose text the update makes likelier, at most TRAINED_TEXTS of them: targets with a weight, and
    completions and expert's solutions that have a teacher or a positive advantage at some token."""
    wanted = [sample for sample in samples if len(sample.completion_ids) and _is_raised(sample)]
    return wanted[:: max(1, -(-len(wanted) // TRAINED_TEXTS))]


def _is_raised(sample: TrainingSample) -> bool:
    if not sample.weight:
        return False
    if sample.term not in ("policy", "expert"):
        return sample.term not in ("rejected", "conditioned")
    if sample.token_advantages is not None:
        return bool((sample.token_advantages > 0).any())
    return sample.teacher is not None or sample.advantage > 0


@dataclass(frozen=True, slots=True)
class TrainedPlan:
    """The sequences to score for training samples: `(context ids, scored ids)`, at temperature 1."""

    texts: list[tuple[IntArray, IntArray]]
    """Each sample as it is trained on."""
    answers: list[tuple[IntArray, IntArray]]
    """For those whose problem is known, the gold answer alone and after the sample's chain, in turn."""


def plan_trained(
    samples: Sequence[TrainingSample], groups: Sequence[Group], lead_tokens: int, chain_of: CutChain
) -> TrainedPlan:
    """Plans what to score for the properties of training samples, whose problems are known by their prompt's ids."""
    asked = [of.rollout.prompt for group in groups for of in (group, group.guided) if of is not None]
    spans = {prompt.free_ids.tobytes(): prompt.answer_span for prompt in asked}
    answers = []
    for sample in samples:
        if (span := spans.get(sample.prompt_ids.tobytes())) is None:
            continue
        lead, answer, alone = span[:lead_tokens], span[lead_tokens:], chain_of(sample.prompt_ids[:0])
        answers.append((np.concatenate([sample.prompt_ids, alone, lead]), answer))
        answers.append((np.concatenate([sample.prompt_ids, chain_of(sample.completion_ids), lead]), answer))
    return TrainedPlan([(sample.prompt_ids, sample.completion_ids) for sample in samples], answers)


def trained_metrics(plan: TrainedPlan, logprobs: Sequence[FloatArray], base: Sequence[FloatArray]) -> dict[str, float]:
    """Properties of what is trained on, from the log-probabilities of `plan.texts`, then `plan.answers`, and from the
    base policy's of `plan.texts` (none: not measured). A mean over nothing is left out."""
    texts, answers = logprobs[: len(plan.texts)], logprobs[len(plan.texts) :]
    sums = [float(np.sum(values, dtype=np.float64)) for values in answers]
    found = {
        "trained/mean_logprob": [float(np.mean(values, dtype=np.float64)) for values in texts],
        "trained/answer_rise": [after - alone for alone, after in zip(sums[::2], sums[1::2], strict=True)],
        "trained/base_logprob": [float(np.mean(values, dtype=np.float64)) for values in base],
    }
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def wrong_answers(groups: Sequence[Group], most: int) -> list[tuple[Group, str]]:
    """The first `most` groups for which a wrong answer is at hand: one that a completion of the group ended in, or the
    gold answer of another problem of its level."""
    found: list[tuple[Group, str]] = []
    for group in groups:
        problem = group.rollout.prompt.problem
        own = [v.extracted for v in group.verdicts if v.outcome == "wrong" and v.extracted]
        others = [g.rollout.prompt.problem for g in groups]
        own += [o.answers[0] for o in others if o.level == problem.level and o.answers[0] not in problem.answers]
        found += [(group, own[0])] if own else []
    return found[:most]


def contrast_metrics(followed: Sequence[bool], logprobs: Sequence[FloatArray]) -> dict[str, float]:
    """The answer-conditioned contrast, from explanations that were told a wrong answer: whether each ended in it, and
    its log-probabilities after the prompt with the wrong answer and after the one with the right answer, in turn."""
    gaps = [float(np.mean(wrong - right)) for wrong, right in zip(logprobs[::2], logprobs[1::2], strict=True)]
    return {
        "contrast/samples": float(len(followed)),
        "contrast/follows": float(np.mean(followed)),
        "contrast/logprob_gap": float(np.mean(gaps)),
    }
