"""VeriFree (arXiv 2505.21493) against plain float64 loops written from its formulas, and its limits."""

import numpy as np
import pytest
from algorithm_cases import config_with, group, inputs, logprob, restate, score

from expo_ray.algorithms import make_algorithm
from expo_ray.messages import TrainingBatch

NAMED = {"name": "verifree", "advantage": "rloo", "loss_normalisation": "dr_grpo"}


def batch_of(groups, scores=score, **algo) -> TrainingBatch:
    algorithm = make_algorithm(config_with(**NAMED | algo))
    algorithm.begin(inputs([each.rollout.prompt for each in groups]))
    algorithm.attach(None, scores, restate)
    return algorithm.training_batch(groups, 0)


def cut_off(of):
    object.__setattr__(of.rollout.completions[-1], "finish_reason", "length")
    return of


@pytest.mark.parametrize("normalisation", ["dr_grpo", "sequence_mean", "token_mean"])
def test_both_terms_equal_the_formula(normalisation):
    """Answer span (7, 8) with a lead of one id: 8 is scored after q, z, 7. The statement is 7, 8, 6 after z."""
    groups = [group(["wrong", "correct", "wrong"], [4, 6, 5]), cut_off(group(["wrong", "wrong"], [3, 7]))]
    batch = batch_of(groups, loss_normalisation=normalisation)
    expected, sequences = [], []
    for of in groups:
        rewards = []
        for completion in of.rollout.completions:
            if completion.finish_reason == "length":
                rewards.append(0.0)
                continue
            context = np.concatenate([[1, 2, 3], completion.token_ids[:-2], [7]])
            rewards.append(np.exp(logprob(context)))
        for i, completion in enumerate(of.rollout.completions):
            others = [r for j, r in enumerate(rewards) if j != i]
            whole = completion.finish_reason == "length"
            chain = completion.token_ids if whole else completion.token_ids[:-2]
            sequences.append(len(chain) + (0 if whole else 3))
            expected.append((chain, rewards[i] - sum(others) / len(others), rewards[i], whole))
    divisor = {
        "dr_grpo": [5 * 16] * 5, "sequence_mean": [5 * n for n in sequences], "token_mean": [sum(sequences)] * 5,
    }[normalisation]  # fmt: skip
    found = iter(batch.samples)
    for (chain, advantage, reward, whole), by in zip(expected, divisor, strict=True):
        thought = next(found)
        assert thought.term == "policy" and thought.completion_ids.tolist() == chain.tolist()
        assert thought.prompt_ids.tolist() == [1, 2, 3] and len(thought.rollout_logprobs) == len(chain)
        assert thought.advantage == pytest.approx(advantage, abs=1e-7)
        assert thought.weight == pytest.approx(1 / by)
        if not whole:
            answer = next(found)
            assert answer.term == "sft" and answer.completion_ids.tolist() == [7, 8, 6]
            assert answer.prompt_ids.tolist() == [1, 2, 3, *chain.tolist()]
            assert answer.weight == pytest.approx(reward / by) and answer.rollout_logprobs is None
    assert next(found, None) is None
    assert batch.metrics["answers/missing"] == 1
    assert batch.metrics["answers/probability"] == pytest.approx(np.mean([r for _, _, r, _ in expected]))


def test_equal_likelihoods_leave_the_second_term_only():
    def equal(sequences, temperature=1.0):
        return [np.full(len(ids), -0.7, np.float32) for _, ids in sequences]

    batch = batch_of([group(["correct", "wrong"], [5, 6])], equal)
    assert [s.advantage for s in batch.samples if s.term == "policy"] == [0.0, 0.0]
    weights = [s.weight for s in batch.samples if s.term == "sft"]
    assert weights == pytest.approx([np.exp(-0.7) / (2 * 16)] * 2)


def test_the_verifier_decides_nothing():
    """Whatever the verdicts, failures included, the batch is the same."""
    one, other = (batch_of([group(outcomes, [4, 6])]) for outcomes in (["correct", "wrong"], ["timeout", "error"]))
    assert [(s.term, s.weight, s.advantage) for s in one.samples] == [
        (s.term, s.weight, s.advantage) for s in other.samples
    ]


def test_completions_without_an_answer_have_no_second_term():
    silent = group(["no_answer", "no_answer"], [4, 6])
    for completion in silent.rollout.completions:
        object.__setattr__(completion, "text", "no end")
    batch = batch_of([silent])
    assert [(s.term, s.advantage, len(s.completion_ids)) for s in batch.samples] == [("policy", 0, 4), ("policy", 0, 6)]
