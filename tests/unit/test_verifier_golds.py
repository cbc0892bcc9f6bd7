"""Gold answers before a run: repaired where they plainly hold an answer, else counted and named."""

import pytest

from expo_ray.config.errors import DataError
from expo_ray.config.schema import VerifierConfig
from expo_ray.messages import Problem
from expo_ray.verifier.tasks import checked_golds, repair


@pytest.mark.parametrize(
    ("gold", "usable"),
    [
        (r"\boxed{42}", "42"),
        ("#### 42", "42"),
        ("The answer is 42", "42"),
        (r"First, we compute. Hence the sum is $\boxed{42}$.", "42"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        ("5\text{ cm}", r"5\text{ cm}"),
        ("\frac12", r"\frac12"),
        ("42 (approximately)", "42"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("1011_2", "1011_2"),
        ("3:45\\text{ p.m.}", "3:45\\text{ p.m.}"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
        ("nan", None),
        ("", None),
        (r"\frac{1", None),
        ("See the proof above for why no such number can be there", None),
    ],
)
def test_repair(gold: str, usable: str | None) -> None:
    assert repair("math", gold) == usable


def problems(*golds: str) -> list[Problem]:
    return [Problem(f"file-{number}", "?", (gold,)) for number, gold in enumerate(golds, 1)]


def test_a_few_unusable_golds_are_counted_and_named() -> None:
    found = checked_golds(problems(*["7"] * 98, r"\boxed{8}", "NaN"), VerifierConfig())
    assert [problem.answers for problem in found.problems[-2:]] == [("8",), ("NaN",)]
    assert found.text() == "gold answers: 100 checked, 1 repaired, 1 cannot be graded, first file-100: 'NaN'"


def test_many_unusable_golds_stop_the_run() -> None:
    with pytest.raises(DataError, match=r"2 of 3 gold answers cannot be graded .* file-1: 'NaN'.*max_unusable_golds"):
        checked_golds(problems("NaN", "", "7"), VerifierConfig())


def test_other_tasks_compare_texts_and_need_no_check() -> None:
    assert checked_golds(problems("anything at all"), VerifierConfig(name="toy")).unusable == 0
