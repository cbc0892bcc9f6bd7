"""Which self-explanations the SFT term trains on: verifier and leak filters, choice, scope and weights."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from expo_ray.algorithms.properties import SampleProperties
from expo_ray.algorithms.rewards import pass_rate
from expo_ray.config.schema import AlgoConfig, Config
from expo_ray.leaks import mentions_given_answer
from expo_ray.messages import Group, IntArray, Term, TrainingSample


@dataclass(frozen=True, slots=True)
class KeptExplanation:
    """One explanation that passed the filters and was chosen among its problem's explanations."""

    token_ids: IntArray
    """[T] as sampled, including the stop token."""
    text: str
    step: int
    """The step it was sampled at."""


class ExplanationStore:
    """The kept explanations of each problem, by uid."""

    def __init__(self) -> None:
        self._kept: dict[str, list[KeptExplanation]] = {}

    def __contains__(self, uid: str) -> bool:
        """Whether the problem's explanations were sampled, even if none of them was kept."""
        return uid in self._kept

    def put(self, uid: str, explanations: list[KeptExplanation]) -> None:
        """Replaces the problem's explanations; an empty list means that none of those sampled was kept."""
        self._kept[uid] = explanations

    def get(self, uid: str) -> list[KeptExplanation]:
        """Returns the problem's kept explanations, possibly none."""
        return self._kept.get(uid, [])

    def state_dict(self) -> dict[str, Any]:
        """Returns the store as a value that JSON can hold."""
        return {
            uid: [{"token_ids": e.token_ids.tolist(), "text": e.text, "step": e.step} for e in kept]
            for uid, kept in self._kept.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the store's content by a `state_dict()`. Raises KeyError if an entry lacks a field."""
        self._kept = {
            uid: [KeptExplanation(np.array(e["token_ids"], dtype=np.int32), e["text"], e["step"]) for e in kept]
            for uid, kept in state.items()
        }


@dataclass(frozen=True, slots=True)
class Review:
    """The decision about one explanation."""

    correct: bool
    """The verifier found the gold answer in it."""
    leak: str | None
    """The phrase that gives away that the answer was known; None if there is none."""
    kept: bool


def review_explanations(group: Group, algo: AlgoConfig, properties: list[SampleProperties] | None) -> list[Review]:
    """Reviews each explanation of the group, in order.

    A candidate is not empty, is correct if `explanation_filter` is on, and does not mention a given answer if
    `leak_filter` is on. `explanation_keep` chooses among the candidates; choosing needs `properties`.
    """
    explanations = group.rollout.explanations
    correct = [verdict.outcome == "correct" for verdict in group.explanation_verdicts]
    leaks = [mentions_given_answer(explanation.text) for explanation in explanations]
    candidates = [
        i
        for i, explanation in enumerate(explanations)
        if len(explanation.token_ids)
        and (correct[i] or not algo.explanation_filter)
        and (leaks[i] is None or not algo.leak_filter)
    ]
    kept = set(choose(candidates, algo.explanation_keep, properties))
    return [Review(c, leak, i in kept) for i, (c, leak) in enumerate(zip(correct, leaks, strict=True))]


def choose(candidates: list[int], keep: str, properties: list[SampleProperties] | None) -> list[int]:
    """Returns the candidates to keep.

    all: every one. likely: the most likely under the policy given q alone. rise: the one that raises the answer's
    log-probability most. both: the one with the lowest sum of both ranks; on a tie, the more likely.
    """
    if keep == "all" or len(candidates) < 2:
        return candidates
    if properties is None:
        raise ValueError(f"algo.explanation_keep={keep} needs measured properties")
    likely = sorted(candidates, key=lambda i: -properties[i].mean_logprob)
    rise = sorted(candidates, key=lambda i: -properties[i].answer_rise)
    if keep == "likely":
        return likely[:1]
    if keep == "rise":
        return rise[:1]
    return [min(likely, key=lambda i: likely.index(i) + rise.index(i))]


def keep_explanations(
    groups: list[Group], algo: AlgoConfig, step: int, properties: list[list[SampleProperties]] | None
) -> tuple[list[list[KeptExplanation]], dict[str, float]]:
    """Reviews the explanations of all groups. Returns those kept of each group, and counts to log."""
    reviews = [
        review_explanations(group, algo, properties[i] if properties is not None else None)
        for i, group in enumerate(groups)
    ]
    kept = [
        [
            KeptExplanation(explanation.token_ids, explanation.text, step)
            for explanation, review in zip(group.rollout.explanations, found, strict=True)
            if review.kept
        ]
        for group, found in zip(groups, reviews, strict=True)
    ]
    return kept, review_metrics(groups, reviews)


def review_metrics(groups: list[Group], reviews: list[list[Review]]) -> dict[str, float]:
    """Counts over the explanations sampled in this step."""
    flat = [review for group in reviews for review in group]
    explanations = [e for group in groups for e in group.rollout.explanations]
    return {
        "explanations/sampled": float(len(flat)),
        "explanations/correct": float(sum(review.correct for review in flat)),
        "explanations/leaked": float(sum(review.leak is not None for review in flat)),
        "explanations/truncated": float(sum(e.finish_reason == "length" for e in explanations)),
        "explanations/kept": float(sum(review.kept for review in flat)),
    }


def in_scope(group: Group, config: Config) -> bool:
    """Whether the group's prompt gets an SFT term, by `explanation_scope`: every, all_wrong, or below (a pass rate
    under `explanation_threshold`). A group without a counted completion is only in scope of `every`."""
    algo = config.algo
    if algo.explanation_scope == "every":
        return True
    rate = pass_rate(group, config)
    if algo.explanation_scope == "all_wrong":
        return rate == 0.0
    return rate is not None and rate < algo.explanation_threshold


def sft_samples(
    groups: list[Group], targets: list[list[IntArray]], beta: float, algo: AlgoConfig
) -> list[TrainingSample]:
    """The SFT term: beta times the mean over prompts of the mean over a prompt's targets of log pi(c | q).

    Each of a prompt's K targets c weighs beta / (prompts * K * |c|), without |c| if `sft_reduction` is sum. `prompts`
    counts every group: one without a target adds 0, and the others keep their weight.
    """
    samples = []
    for group, ids_of_group in zip(groups, targets, strict=True):
        for ids in ids_of_group:
            tokens = len(ids) if algo.sft_reduction == "mean" else 1
            weight = beta / (len(groups) * len(ids_of_group) * tokens)
            samples.append(target_sample(group.rollout.prompt.free_ids, ids, "sft", weight))
    return samples


def conditioned_samples(groups: list[Group]) -> list[TrainingSample]:
    """Samples for the KL term: this step's explanations after the answer-conditioned prompt that produced them.

    Each weighs 1 / (explanations * |c|); the loss multiplies by `kl_conditioned_coef`.
    """
    sampled = [(g.rollout.prompt, e) for g in groups for e in g.rollout.explanations if len(e.token_ids)]
    return [
        target_sample(prompt.conditioned_ids, e.token_ids, "conditioned", 1.0 / (len(sampled) * len(e.token_ids)))
        for prompt, e in sampled
    ]


def target_sample(prompt_ids: IntArray, target_ids: IntArray, term: Term, weight: float) -> TrainingSample:
    """A sample whose `target_ids` follow `prompt_ids` unchanged; nothing is tokenised again."""
    return TrainingSample(prompt_ids=prompt_ids, completion_ids=target_ids, term=term, weight=weight)
