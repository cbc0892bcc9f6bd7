"""pass@k against counting."""

import itertools

import pytest

from expo_ray.evaluation.metrics import pass_at_k


@pytest.mark.parametrize("samples", range(1, 8))
def test_equals_the_share_of_subsets_with_a_right_sample(samples):
    for correct in range(samples + 1):
        right = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = [any(chosen) for chosen in itertools.combinations(right, k)]
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_impossible_counts_are_refused(samples, correct, k):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(samples, correct, k)
