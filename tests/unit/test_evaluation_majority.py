"""majority@k against a vote in every subset."""

import itertools
import math
from collections import Counter

import pytest
from evaluation_cases import graded, prompt, right, wrong
from hypothesis import given
from hypothesis import strategies as st

from expo_ray.evaluation.metrics import majority_at_k, normal_form, pass_at_k, samples_of, votes
from expo_ray.messages import Verdict

counts = st.lists(st.integers(1, 4), max_size=3)


def voted(chosen: tuple) -> float:
    """The chance that the vote of these samples is right; a sample is (answer, whether right), None without one."""
    tally = Counter(sample for sample in chosen if sample is not None)
    first = [sample for sample, n in tally.items() if n == max(tally.values())]
    return sum(is_right for _answer, is_right in first) / len(first) if first else 0.0


def counted(of_right, of_wrong, silent: int, k: int) -> float:
    """majority@k by holding the vote in each subset."""
    samples = [None] * silent
    for is_right, classes in ((True, of_right), (False, of_wrong)):
        for answer, n in enumerate(classes):
            samples += [(answer, is_right)] * n
    subsets = list(itertools.combinations(samples, k))
    return sum(map(voted, subsets)) / len(subsets)


def compositions(total: int):
    """Every (right, wrong, silent) with at most two answers of either sort."""
    for parts in itertools.product(range(total + 1), repeat=4):
        if parts[0] >= parts[1] and parts[2] >= parts[3] and sum(parts) <= total:
            yield tuple(p for p in parts[:2] if p), tuple(p for p in parts[2:] if p), total - sum(parts)


@pytest.mark.parametrize("total", range(1, 8))
def test_equals_the_vote_in_every_subset(total):
    for of_right, of_wrong, silent in compositions(total):
        found = majority_at_k(of_right, of_wrong, silent)
        expected = [counted(of_right, of_wrong, silent, k) for k in range(1, total + 1)]
        assert found == pytest.approx(expected, abs=1e-12), (of_right, of_wrong, silent)


@given(counts, counts, st.integers(0, 3), st.data())
def test_equals_the_vote_with_more_answers(of_right, of_wrong, silent, data):
    total = sum(of_right) + sum(of_wrong) + silent
    if not 1 <= total <= 12:
        return
    k = data.draw(st.integers(1, total))
    expected = counted(of_right, of_wrong, silent, k)
    assert majority_at_k(tuple(of_right), tuple(of_wrong), silent)[k - 1] == pytest.approx(expected, abs=1e-12)


def test_many_wrong_answers_that_differ_lose_to_two_right_ones():
    found = majority_at_k((2,), (1,) * 8, 0)
    assert found[-1] == 1.0
    assert found[1] == pytest.approx((1 + 16 * 0.5) / math.comb(10, 2))


def test_one_sample_is_the_mean_accuracy():
    assert majority_at_k((3, 2), (4,), 1)[0] == pytest.approx(0.5)


def test_large_numbers_of_samples_stay_finite_and_in_bounds():
    found = majority_at_k((300, 100), (299, 200), 125)
    assert all(0.0 <= value <= 1.0 + 1e-9 for value in found)
    assert found[-1] == pytest.approx(1.0)
    assert all(value <= pass_at_k(1024, 400, k) + 1e-9 for k, value in enumerate(found, start=1))


@pytest.mark.parametrize("bad", [((), (), 0), ((0,), (), 1), ((), (), -1)])
def test_no_votes_are_refused(bad):
    with pytest.raises(ValueError, match="not a valid vote"):
        majority_at_k(*bad)


@pytest.mark.parametrize(
    ("first", "second"),
    [("0.5", r"\dfrac{1}{2}"), ("1,234", "1234"), (r"$\frac12$", "1/2"), ("x+1", "x + 1"), ("3", "3.0"), ("½", ".5")],
)
def test_spellings_of_one_answer_are_one_vote(first, second):
    assert normal_form(first, "math") == normal_form(second, "math")


@pytest.mark.parametrize(("first", "second"), [("1/2", "1/3"), ("(1,2)", "1,2"), ("x+1", "x-1"), ("50\\%", "50")])
def test_answers_that_differ_are_two(first, second):
    assert normal_form(first, "math") != normal_form(second, "math")


def test_other_tasks_compare_texts():
    assert normal_form("075", "toy") != normal_form("75", "toy")


@given(st.text(alphabet="\\{}frac123^_$()[],.-+eE %½²", max_size=300))
def test_hostile_answers_have_a_normal_form(text):
    assert normal_form(text, "math") == normal_form(text, "math")


@pytest.mark.parametrize("text", ["1e20000", "10^{99999999}", "1/0", "\\frac{" * 33, "{" * 200, "9" * 200])
def test_extreme_answers_have_a_normal_form(text):
    assert hash(normal_form(text, "math")) == hash(normal_form(text, "math"))


def test_votes_of_a_group():
    undecided, late, none = Verdict("error", "7^{9^9}"), Verdict("timeout"), Verdict("no_answer")
    verdicts = [right("0.5"), right("1/2"), wrong("2"), wrong("2.0"), wrong("3"), undecided, late, none]
    found = votes(samples_of(graded(prompt("a"), verdicts)), "math")
    assert found == ((2,), (1, 1, 2), 2)


def test_one_spelling_judged_both_ways_is_two_answers():
    found = votes(samples_of(graded(prompt("a"), [right("5"), Verdict("error", "5")])), "math")
    assert found == ((1,), (1,), 0)
