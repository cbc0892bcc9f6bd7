"""Which self-explanations are trained on, and as which targets: filters, choice, answer, scope and weights."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from expo_ray.algorithms.properties import SampleProperties
from expo_ray.algorithms.rewards import pass_rate
from expo_ray.config.schema import AlgoConfig, Config
from expo_ray.leaks import mentions_given_answer
from expo_ray.messages import Group, IntArray, Prompt, Term, TrainingSample

Restate = Callable[[Prompt, IntArray], tuple[IntArray, str]]
"""Replaces a completion's answer statement by the gold answer's; ids and text (PromptBuilder.restate)."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One sampled explanation, and the target that was made from it."""

    token_ids: IntArray
    """[T] as sampled, including the stop token."""
    target_ids: IntArray | None
    """[T'] what is trained on after the free prompt; None if a filter or the choice left the explanation out."""
    text: str
    """The target's; of an explanation that was left out, its own."""
    step: int
    """The step it was sampled at."""


class ExplanationStore:
    """The explanations of each problem, by uid."""

    def __init__(self) -> None:
        self._found: dict[str, list[Explanation]] = {}

    def __contains__(self, uid: str) -> bool:
        """Whether the problem's explanations were sampled, even if none of them became a target."""
        return uid in self._found

    def put(self, uid: str, explanations: list[Explanation]) -> None:
        """Replaces the problem's explanations."""
        self._found[uid] = explanations

    def get(self, uid: str) -> list[Explanation]:
        """Returns the problem's explanations, possibly none."""
        return self._found.get(uid, [])

    def state_dict(self) -> dict[str, Any]:
        """Returns the store as a value that JSON can hold."""
        return {
            uid: [
                asdict(e)
                | {"token_ids": e.token_ids.tolist()}
                | {"target_ids": None if e.target_ids is None else e.target_ids.tolist()}
                for e in found
            ]
            for uid, found in self._found.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the store's content by a `state_dict()`. Raises KeyError if an entry lacks a field.

        Earlier versions stored only what was kept, and trained on it as sampled.
        """
        self._found = {
            uid: [
                Explanation(_ids(e["token_ids"]), None if target is None else _ids(target), e["text"], e["step"])
                for e in found
                for target in [e.get("target_ids", e["token_ids"])]
            ]
            for uid, found in state.items()
        }


def _ids(values: list[int]) -> IntArray:
    return np.array(values, dtype=np.int32)


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

    A candidate is not empty, is correct if `explanation_filter` is on, does not mention a given answer if
    `leak_filter` is on, and did not meet the length limit if `explanation_cut_off` is drop. `explanation_keep`
    chooses among the candidates; choosing needs `properties`.
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
        and (explanation.finish_reason == "stop" or algo.explanation_cut_off == "keep")
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
    groups: list[Group],
    algo: AlgoConfig,
    step: int,
    properties: list[list[SampleProperties]] | None,
    restate: Restate | None,
) -> tuple[list[list[Explanation]], dict[str, float]]:
    """Reviews the explanations of all groups. Returns those of each group, with their targets, and counts to log.

    The target of an explanation that ends with a correct answer is the explanation as it was sampled. Where the
    answer is wrong or missing, or the length limit cut the explanation off, `explanation_answer: gold` replaces the
    answer statement by the gold answer's (`restate`).
    """
    reviews = [
        review_explanations(group, algo, properties[i] if properties is not None else None)
        for i, group in enumerate(groups)
    ]
    found: list[list[Explanation]] = []
    restated = 0
    for group, of_group in zip(groups, reviews, strict=True):
        found.append([])
        for sampled, review in zip(group.rollout.explanations, of_group, strict=True):
            ids, text = sampled.token_ids, sampled.text
            right = review.correct and sampled.finish_reason == "stop"
            if review.kept and algo.explanation_answer == "gold" and not right:
                assert restate is not None, "attach() comes before the first step"
                ids, text = restate(group.rollout.prompt, ids)
                restated += 1
            found[-1].append(Explanation(sampled.token_ids, ids if review.kept else None, text, step))
    return found, review_metrics(groups, reviews, algo) | {"explanations/answer_replaced": float(restated)}


def review_metrics(groups: list[Group], reviews: list[list[Review]], algo: AlgoConfig) -> dict[str, float]:
    """Counts over the explanations sampled in this step."""
    flat = [review for group in reviews for review in group]
    cut_off = sum(e.finish_reason == "length" for group in groups for e in group.rollout.explanations)
    return {
        "explanations/sampled": float(len(flat)),
        "explanations/correct": float(sum(review.correct for review in flat)),
        "explanations/leaked": float(sum(review.leak is not None for review in flat)),
        "explanations/truncated": float(cut_off),
        "explanations/cut_off_dropped": float(cut_off if algo.explanation_cut_off == "drop" else 0),
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


def conditioned_samples(groups: list[Group], explanations: list[list[IntArray]]) -> list[TrainingSample]:
    """Samples for the KL term: the groups' explanations as sampled, after the answer-conditioned prompt.

    Each weighs 1 / (explanations * |c|); the loss multiplies by `kl_conditioned_coef`.
    """
    used = [
        (group.rollout.prompt, ids)
        for group, of_group in zip(groups, explanations, strict=True)
        for ids in of_group
        if len(ids)
    ]
    return [
        target_sample(prompt.conditioned_ids, ids, "conditioned", 1.0 / (len(used) * len(ids))) for prompt, ids in used
    ]


def target_sample(prompt_ids: IntArray, target_ids: IntArray, term: Term, weight: float) -> TrainingSample:
    """A sample whose `target_ids` follow `prompt_ids` unchanged; nothing is tokenised again."""
    return TrainingSample(prompt_ids=prompt_ids, completion_ids=target_ids, term=term, weight=weight)
