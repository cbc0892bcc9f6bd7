"""Rewards and advantages against plain Python written from the formulas."""

import math
import statistics

import numpy as np
import pytest
from algorithm_cases import config_with, group
from hypothesis import given
from hypothesis import strategies as st

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.rewards import (
    group_advantages,
    group_metrics,
    group_rewards,
    has_signal,
    overlong_penalty,
    rewards_differ,
    shaped_advantages,
)

KINDS = ("grpo", "dr_grpo", "rloo", "maxrl")


@given(st.lists(st.sampled_from([0.0, 1.0, 0.25, -0.5, None]), min_size=1, max_size=12), st.sampled_from(KINDS))
def test_advantages_equal_the_formula(rewards, kind):
    counted = [r for r in rewards if r is not None]
    found = group_advantages([math.nan if r is None else r for r in rewards], kind)
    for reward, advantage in zip(rewards, found, strict=True):
        if reward is None:
            assert math.isnan(advantage)
            continue
        mean, deviation = sum(counted) / len(counted), statistics.pstdev(counted)
        expected = reward - mean
        if kind == "grpo":
            expected = expected / deviation if deviation else 0.0
        elif kind == "rloo" and len(counted) > 1:
            expected = reward - (sum(counted) - reward) / (len(counted) - 1)
        elif kind == "maxrl":
            expected = expected / max(mean, 1 / len(counted))
        assert advantage == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("right", [1, 2, 3])
def test_maxrl_weighs_a_prompt_by_one_over_its_pass_rate(right):
    """K of 4 are right: a right one gets (1 - K/4) / (K/4), a wrong one -1 (arXiv 2602.02710)."""
    found = group_advantages([1.0] * right + [0.0] * (4 - right), "maxrl")
    np.testing.assert_allclose(found, [4 / right - 1] * right + [-1.0] * (4 - right), rtol=1e-12)


@pytest.mark.parametrize("rewards", [[0.1] * 7, [1.0], [0.0, 0.0], [math.nan, 0.3, 0.3], [math.nan]])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_give_exactly_zero(rewards, kind):
    found = group_advantages(rewards, kind)
    assert all(a == 0.0 for a, r in zip(found, rewards, strict=True) if not math.isnan(r))


def test_one_right_of_four():
    found = group_advantages([1, 0, 0, 0], "grpo")
    np.testing.assert_allclose(found, [math.sqrt(3), *[-1 / math.sqrt(3)] * 3], rtol=1e-12)


def test_timeout_and_error_are_left_out_unless_counted_as_wrong():
    config = config_with()
    mixed = group(["correct", "timeout", "wrong", "error", "no_answer"])
    np.testing.assert_array_equal(group_rewards(mixed, config), [1, np.nan, 0, np.nan, 0])
    config.verifier.count_failures_as_wrong = True
    np.testing.assert_array_equal(group_rewards(mixed, config), [1, 0, 0, 0, 0])


def test_failures_are_not_a_signal():
    config = config_with()
    assert not has_signal(group(["wrong", "timeout", "error"]), config)
    assert has_signal(group(["wrong", "timeout", "correct"]), config)


@pytest.mark.parametrize(("length", "lost"), [(1, 0), (12, 0), (13, 0.125), (14, 0.25), (16, 0.5), (20, 0.5)])
def test_overlong_shaping(length, lost):
    """Limit 16, zone of the last 4 tokens, at most 0.5."""
    algo = config_with(overlong_buffer_tokens=4, overlong_penalty=0.5).algo
    assert overlong_penalty(length, 16, algo) == pytest.approx(lost)
    assert overlong_penalty(length, 16, config_with().algo) == 0


@pytest.mark.parametrize("outcome", ["correct", "wrong"])
def test_overlong_shaping_is_no_signal_among_equally_correct_completions(outcome):
    """Else the shorter of two wrong completions would get a positive advantage."""
    shaped = config_with(overlong_buffer_tokens=8)
    alike = group([outcome, outcome, "timeout"], lengths=[4, 16, 4])
    assert rewards_differ(group_rewards(alike, shaped)) and not has_signal(alike, shaped)
    np.testing.assert_array_equal(shaped_advantages(alike, shaped), [0, 0, np.nan])
    assert group_metrics([alike], shaped)["groups/no_signal"] == 1
    batch = make_algorithm(shaped).training_batch([alike], 0)
    assert [sample.advantage for sample in batch.samples if sample.term == "policy"] == [0, 0]


def test_overlong_shaping_acts_on_the_rewards_of_a_mixed_group():
    shaped = config_with(overlong_buffer_tokens=8)
    mixed = group(["correct", "correct", "wrong"], lengths=[4, 12, 16])
    assert has_signal(mixed, shaped)
    np.testing.assert_allclose(group_rewards(mixed, shaped), [1, 0.5, -1])
    mean, deviation = 0.5 / 3, statistics.pstdev([1, 0.5, -1])
    expected = [(reward - mean) / deviation for reward in (1, 0.5, -1)]
    np.testing.assert_allclose(shaped_advantages(mixed, shaped), expected, rtol=1e-12)


def test_group_metrics_count_by_hand():
    groups = [
        group(["correct", "correct"], level=1),
        group(["wrong", "no_answer"], level=5),
        group(["wrong", "correct"], level=5),
        group(["timeout", "wrong"], level=None),
    ]
    metrics = group_metrics(groups, config_with())
    assert metrics["groups/total"] == 4
    assert metrics["groups/all_wrong"] == 0.5
    assert metrics["groups/all_right"] == 0.25
    assert metrics["groups/no_signal"] == 0.75
    assert metrics["groups/dropped"] == 0
    assert metrics["completions/left_out"] == 1
    assert metrics["pass_rate/level_1"] == 1
    assert metrics["pass_rate/level_5"] == 0.25
    assert metrics["pass_rate/all"] == pytest.approx(3 / 7)
    assert metrics["reward/mean"] == pytest.approx(3 / 7)
    assert group_metrics(groups, config_with(dynamic_sampling="drop"))["groups/dropped"] == 3
