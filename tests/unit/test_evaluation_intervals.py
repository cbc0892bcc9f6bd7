"""Bootstrap intervals against the exact bootstrap distribution, a plain loop and the normal approximation."""

import itertools
import random
import statistics

import numpy as np
import pytest

from expo_ray.evaluation import metrics as intervals
from expo_ray.evaluation.metrics import bootstrap_interval


def exact_quantiles(values: list[float], confidence: float) -> tuple[float, float]:
    """From all P^P resamples, each equally likely."""
    means = sorted(statistics.fmean(drawn) for drawn in itertools.product(values, repeat=len(values)))
    tail = (1 - confidence) / 2
    return means[round(tail * (len(means) - 1))], means[round((1 - tail) * (len(means) - 1))]


def test_against_all_resamples():
    values = [0.0, 0.13, 0.4, 0.55, 1.0]
    low, high = bootstrap_interval(np.array(values)[:, None], confidence=0.8, resamples=40_000)
    expected = exact_quantiles(values, 0.8)
    assert (low[0], high[0]) == pytest.approx(expected, abs=0.015)


def test_against_a_plain_loop_on_shares():
    values = [random.Random(1).choice([0.0, 0.25, 0.5, 1.0]) for _ in range(60)]
    own = random.Random(5)
    means = sorted(statistics.fmean(own.choices(values, k=60)) for _ in range(8000))
    low, high = bootstrap_interval(np.array(values)[:, None], resamples=8000)
    assert (low[0], high[0]) == pytest.approx((means[199], means[7799]), abs=0.01)


def test_many_problems_give_the_normal_interval():
    values = np.random.default_rng(0).uniform(size=(3000, 1))
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low[0], high[0]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_columns_are_resampled_together_and_each_on_its_own_scale():
    values = np.random.default_rng(0).uniform(size=(40, 1))
    low, high = bootstrap_interval(np.hstack([values, 10 * values, 1 - values]))
    assert low[1] == pytest.approx(10 * low[0])
    assert high[2] == pytest.approx(1 - low[0])


def test_the_same_values_give_the_same_interval_in_whatever_blocks(monkeypatch):
    values = np.random.default_rng(0).uniform(size=(50, 2))
    low, high = bootstrap_interval(values, resamples=300)
    monkeypatch.setattr(intervals, "_BLOCK", 50 * 100)
    again = bootstrap_interval(values, resamples=300)
    np.testing.assert_array_equal(np.stack([low, high]), np.stack(again))
    assert (low < high).all()
    assert not np.array_equal(low, bootstrap_interval(values, resamples=300, seed=1)[0])


def test_one_problem_has_no_width():
    low, high = bootstrap_interval(np.array([[0.25]]))
    assert (low[0], high[0]) == (0.25, 0.25)
