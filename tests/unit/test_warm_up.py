"""SFT before an algorithm: targets, weights, loss, learning rate, where the algorithm begins, and what is refused."""

import json

import numpy as np
import pytest
from algorithm_cases import config_with, group, inputs, random_arrays, restate, score
from test_algorithms_batches import same_samples

from expo_ray.algorithms import make_algorithm
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.resources import Resources
from expo_ray.learner.update import learning_rate, rate_of_update
from expo_ray.preflight.values import check_config

TOLD = [
    ("it follows that x is 5", "correct"),
    ("it follows that x is 6", "wrong"),
    ("since the answer is given as 5", "correct"),
]


def begun(steps: int, on: str = "gold", **algo):
    config = config_with(**algo)
    config.trainer.sft_steps, config.trainer.sft_on = steps, on
    algorithm = make_algorithm(config)
    algorithm.begin(inputs([group(["wrong"]).rollout.prompt]))
    algorithm.attach(None, score, restate)
    return algorithm


def test_gold_solutions_are_trained_on_with_one_weight_a_token():
    algorithm = begun(3)
    batch = algorithm.training_batch([group([]), group([], gold=False), group([])], 2)
    assert [s.completion_ids.tolist() for s in batch.samples] == [[41, 42, 43, 44, 45]] * 2
    assert [s.prompt_ids.tolist() for s in batch.samples] == [[1, 2, 3]] * 2
    assert [s.weight for s in batch.samples] == [1 / 10] * 2
    assert batch.metrics["warm_up/prompts_without"] == 1
    assert algorithm.rollout_ahead(2) == 0 and algorithm.explanations_ahead(2) == 0 and algorithm.rollout_ahead(3) == 1


def test_of_explanations_only_right_and_whole_ones_without_a_leak_are_targets():
    """Whatever the algorithm's own filters are."""
    cut_off = group([], explanations=TOLD[:1] * 2)
    object.__setattr__(cut_off.rollout.explanations[1], "finish_reason", "length")
    algorithm = begun(3, "explanations", explanation_filter=False, leak_filter=False, explanation_cut_off="keep")
    batch = algorithm.training_batch([group([], explanations=TOLD), cut_off], 0)
    assert [s.completion_ids.tolist() for s in batch.samples] == [[1000, 1001, 1002]] * 2
    assert [s.weight for s in batch.samples] == [1 / 6] * 2
    assert algorithm.explanations_ahead(0) == 1 and algorithm.rollout_ahead(0) == 0


@pytest.mark.parametrize("name", ["grpo", "exp_grpo", "dpo_gt"])
def test_loss_and_gradient_equal_the_formula(name):
    arrays = random_arrays(["warm_up"] * 4, seed=1)
    tokens = arrays.tokens()
    output = begun(3, name=name).loss(tokens)
    output.loss.backward()
    expected = -sum(w * values.sum() for w, values in zip(arrays.weight, arrays.logprobs, strict=True))
    assert output.loss.item() == pytest.approx(expected, rel=1e-12)
    weights = np.concatenate([np.full(len(v), -w) for w, v in zip(arrays.weight, arrays.logprobs, strict=True)])
    np.testing.assert_allclose(tokens.logprobs.grad.numpy(), weights, rtol=1e-12)


def test_then_the_algorithm_begins_with_the_steps_that_are_left():
    """beta falls linearly over 7 of the 10 steps, from the fourth on; the batch is that of a run of 7."""
    keys = {"beta": 0.5, "beta_schedule": "linear"}
    late = begun(3, **keys)
    config = config_with(**keys)
    config.trainer.steps = 7
    plain = make_algorithm(config)
    plain.attach(None, score, restate)
    for step in (3, 5, 9):
        groups = [group(["correct", "wrong"])]
        mine, own = late.training_batch(groups, step), plain.training_batch(groups, step - 3)
        same_samples(mine, own)
        assert (mine.step, mine.beta) == (step, own.beta) and mine.beta == pytest.approx(0.5 * (1 - (step - 3) / 7))
    again = begun(3, **keys)
    again.load_state_dict(json.loads(json.dumps(late.state_dict())))
    assert again.state_dict() == plain.state_dict()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_each_stage_has_its_own_schedule(schedule):
    config = config_with()
    config.learner.schedule, config.learner.warmup_steps, config.learner.learning_rate = schedule, 2, 1e-3
    config.trainer.sft_steps, config.learner.sft_learning_rate = 4, 5e-2
    found = [rate_of_update(config, update) for update in range(10)]
    second = [learning_rate(config.learner, update, 6) for update in range(6)]
    config.learner.learning_rate = 5e-2
    assert found == [learning_rate(config.learner, update, 4) for update in range(4)] + second
    config.learner.sft_learning_rate, config.learner.learning_rate = None, 1e-3
    assert [rate_of_update(config, u) for u in range(4)] == [learning_rate(config.learner, u, 4) for u in range(4)]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["trainer.sft_steps=5", "trainer.steps=4"], "use trainer.steps=5"),
        (["trainer.sft_on=explanations"], "does nothing without trainer.sft_steps"),
        (["algo=exp_dpo", "algo.dpo_refresh=offline", "trainer.sft_steps=2"], "use algo.dpo_refresh=online"),
        (
            ["algo=grpo", "trainer.sft_steps=2", "trainer.sft_on=explanations", "rollout.explanations_per_prompt=0"],
            "trainer.sft_on=explanations needs rollout.explanations_per_prompt=1 or more",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(overrides, sentence):
    config = compose_config(["experiment=demo", "profile=cpu", "dry_run=true", *overrides])
    with pytest.raises(ConfigError) as caught:
        check_config(config, Resources("here", 1, 64, 500, 8, 79))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_an_algorithm_without_explanations_keeps_them_for_its_sft():
    asked = ["experiment=demo", "algo=grpo", "rollout.explanations_per_prompt=2"]
    assert compose_config(asked).rollout.explanations_per_prompt == 0
    kept = compose_config([*asked, "trainer.sft_steps=2", "trainer.sft_on=explanations"])
    assert kept.rollout.explanations_per_prompt == 2


def test_gold_solutions_that_no_problem_has_are_refused():
    config = config_with()
    config.trainer.sft_steps = 2
    with pytest.raises(ConfigError, match=r"use trainer\.sft_on=explanations"):
        make_algorithm(config).begin(inputs([group(["wrong"], gold=False).rollout.prompt]))
