"""RAVR (arXiv 2510.25206) against plain float64 loops written from its formulas, and its limits."""

import numpy as np
import pytest
from algorithm_cases import config_with, group, inputs, logprob, restate, score

from expo_ray.algorithms import make_algorithm
from expo_ray.messages import TrainingBatch

TOLD = [("so it is 5", "correct"), ("so it is 5", "correct"), ("no end", "no_answer")]


def batch_of(groups, **algo) -> TrainingBatch:
    config = config_with(name="ravr", **algo)
    config.rollout.explanations_per_prompt = 3
    algorithm = make_algorithm(config)
    algorithm.begin(inputs([each.rollout.prompt for each in groups]))
    algorithm.attach(None, score, restate)
    return algorithm.training_batch(groups, 0)


@pytest.mark.parametrize("coefficient", [0.1, 0.7])
def test_the_three_terms_equal_the_formula(coefficient):
    of = group(["wrong", "correct"], [3, 8], explanations=TOLD)
    batch = batch_of([of], posterior_kl_coef=coefficient)
    free, told = [1, 2, 3], [1, 2, 9, 3]

    def utility(completion) -> float:
        if completion.text == "no end":
            return 0.0
        return np.exp(logprob([*free, *completion.token_ids[:-2], 7]))

    baseline = np.mean([utility(c) for c in of.rollout.completions])
    rewards, useful, divergences = [], [], []
    for explanation in of.rollout.explanations:
        tokens = len(explanation.token_ids)
        divergences.append(logprob(told, tokens) - logprob(free, tokens))
        useful.append(utility(explanation))
        rewards.append(max(0.0, useful[-1] - baseline) - coefficient * divergences[-1])
    assert any(u > baseline for u in useful) and any(u < baseline for u in useful)  # both sides of the cut at 0
    advantages = (np.array(rewards) - np.mean(rewards)) / np.std(rewards)
    found, count = iter(batch.samples), 3 + 3 + 2
    assert len(batch.samples) == count
    for explanation, advantage, u in zip(of.rollout.explanations, advantages, useful, strict=True):
        ids = explanation.token_ids.tolist()
        chain = ids if u == 0 else ids[:-2]
        posterior, prior = next(found), next(found)
        assert (posterior.term, posterior.prompt_ids.tolist(), posterior.completion_ids.tolist()) == (
            "policy",
            told,
            ids,
        )
        assert posterior.rollout_logprobs is explanation.logprobs
        assert posterior.advantage == pytest.approx(advantage, abs=1e-6)
        assert posterior.weight == pytest.approx(1 / (count * len(ids)))
        assert (prior.term, prior.prompt_ids.tolist(), prior.completion_ids.tolist()) == ("sft", free, chain)
        assert prior.weight == pytest.approx(coefficient / (count * len(chain)))
        if u:
            answer = next(found)
            assert (answer.term, answer.completion_ids.tolist()) == ("sft", [7, 8, 6])
            assert answer.prompt_ids.tolist() == [*free, *chain]
            assert answer.weight == pytest.approx(u / (count * 3))
    assert batch.metrics["posterior/utility"] == pytest.approx(np.mean(useful))
    assert batch.metrics["posterior/baseline"] == pytest.approx(baseline)
    assert batch.metrics["posterior/kl"] == pytest.approx(np.mean(divergences), abs=1e-6)


def test_one_explanation_has_nothing_to_be_compared_with():
    batch = batch_of([group(["wrong", "correct"], explanations=TOLD[:1])])
    assert [s.advantage for s in batch.samples if s.term == "policy"] == [0.0]


def test_without_the_kl_the_prior_has_no_weight():
    batch = batch_of([group(["wrong", "correct"], explanations=TOLD)], posterior_kl_coef=0.0)
    priors = [s for s in batch.samples if s.term == "sft" and s.prompt_ids.tolist() == [1, 2, 3]]
    assert [s.weight for s in priors] == [0.0] * 3


def test_only_prompts_in_scope_are_trained_on():
    groups = [group(["wrong", "wrong"], explanations=TOLD), group(["wrong", "correct"], explanations=TOLD, uid="q")]
    assert len(batch_of(groups, explanation_scope="all_wrong").samples) == 8
    assert len(batch_of(groups).samples) == 16
