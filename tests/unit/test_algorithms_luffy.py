"""LUFFY (arXiv 2504.14945) against plain float64 loops written from its formulas, and its limits."""

import numpy as np
import pytest
from algorithm_cases import config_with, group, random_arrays
from test_algorithms_batches import batch_of, same_samples

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.base import Inputs
from expo_ray.algorithms.losses import grpo_loss
from expo_ray.config.errors import ConfigError

NAMED = {"name": "luffy", "advantage": "dr_grpo", "loss_normalisation": "dr_grpo"}


@pytest.mark.parametrize(("kind", "deviation"), [("grpo", True), ("dr_grpo", False)])
def test_the_experts_solution_is_a_member_of_the_group(kind, deviation):
    """R = [0, 1, 0, none] and 1 for the solution: mean 1/2 and deviation 1/2 over the four that count."""
    batch = batch_of([group(["wrong", "correct", "wrong", "timeout"])], **NAMED | {"advantage": kind})
    assert [sample.term for sample in batch.samples] == ["policy"] * 3 + ["expert"]
    expected = np.array([-0.5, 0.5, -0.5, 0.5]) / (0.5 if deviation else 1.0)
    np.testing.assert_allclose([sample.advantage for sample in batch.samples], expected, rtol=1e-12)
    trace = batch.samples[-1]
    assert trace.prompt_ids.tolist() == [1, 2, 3] and trace.completion_ids.tolist() == [41, 42, 43, 44, 45]
    assert trace.rollout_logprobs is None and trace.weight == pytest.approx(1 / (4 * 16))


@pytest.mark.parametrize("normalisation", ["sequence_mean", "token_mean", "dr_grpo"])
def test_the_normaliser_counts_the_solutions_too(normalisation):
    groups = [group(["wrong", "correct"], [2, 4]), group(["wrong", "wrong"], [6, 8])]
    batch = batch_of(groups, **NAMED | {"loss_normalisation": normalisation})
    lengths = [2, 4, 5, 6, 8, 5]
    expected = {
        "sequence_mean": [1 / (6 * n) for n in lengths],
        "token_mean": [1 / sum(lengths)] * 6,
        "dr_grpo": [1 / (6 * 16)] * 6,
    }
    assert [sample.weight for sample in batch.samples] == pytest.approx(expected[normalisation])


def test_an_all_wrong_group_learns_from_the_solution_and_an_all_right_one_does_not():
    batch = batch_of([group(["wrong"] * 3), group(["correct"] * 3)], **NAMED)
    assert [s.advantage for s in batch.samples] == pytest.approx([-0.25] * 3 + [0.75] + [0.0] * 4)
    assert batch.metrics["gold/trained"] == 1
    dropped = batch_of([group(["wrong"] * 3), group(["correct"] * 3)], **NAMED | {"dynamic_sampling": "drop"})
    assert len(dropped.samples) == 4 and dropped.metrics["groups/dropped"] == 1
    algorithm = make_algorithm(config_with(**NAMED))
    assert algorithm.has_signal(group(["wrong"] * 3)) and not algorithm.has_signal(group(["correct"] * 3))


@pytest.mark.parametrize("name", ["sequence_mean", "token_mean"])
def test_without_solutions_it_is_grpo_exactly(name):
    groups = [group(["correct", "wrong", "timeout"], [2, 5, 3], gold=False), group(["wrong"] * 3, gold=False)]
    keys = {"loss_normalisation": name, "advantage": "grpo", "overlong_buffer_tokens": 12}
    same_samples(batch_of(groups, name="luffy", **keys), batch_of(groups, name="grpo", **keys))


TERMS = ["policy", "expert", "policy", "expert", "expert"]


@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_loss_and_gradient_equal_the_formula(gamma):
    arrays = random_arrays(TERMS, seed=2)
    random = np.random.default_rng(3)
    arrays.advantage = [random.normal(size=len(values)) for values in arrays.logprobs]
    config = config_with(**NAMED, expert_shaping=gamma)
    tokens = arrays.tokens()
    output = make_algorithm(config).loss(tokens)
    output.loss.backward()
    policy = [i for i, term in enumerate(TERMS) if term == "policy"]
    on_policy = arrays.take(policy).tokens()
    expected = grpo_loss(on_policy, config.algo).loss
    expected.backward()
    rest, slopes = 0.0, []
    for i in (1, 3, 4):
        for logprob, advantage in zip(arrays.logprobs[i], arrays.advantage[i], strict=True):
            p, factor = np.exp(logprob), -arrays.weight[i] * advantage
            rest += factor * p / (p + gamma)
            slopes.append(factor * gamma / (p + gamma) ** 2 * p)  # d f / d log p = f'(p) p
    assert output.loss.item() == pytest.approx(expected.item() + rest, rel=1e-12)
    lengths = [len(values) for values in arrays.logprobs]
    parts = np.split(tokens.logprobs.grad.numpy(), np.cumsum(lengths)[:-1])
    np.testing.assert_allclose(np.concatenate([parts[i] for i in (1, 3, 4)]), slopes, rtol=1e-12)
    np.testing.assert_allclose(np.concatenate([parts[i] for i in policy]), on_policy.logprobs.grad.numpy(), rtol=1e-12)


def test_rewards_that_the_solution_cannot_get_are_refused():
    config = config_with(**NAMED)
    config.reward.functions = ["verifier", "module:brevity"]
    with pytest.raises(ConfigError, match="give the expert's solution no reward"):
        make_algorithm(config).begin(Inputs("model", [], (), str))
    config.reward.weights = [1.0, 0.0]
    assert make_algorithm(config).begin(Inputs("model", [], (), str)) == []
