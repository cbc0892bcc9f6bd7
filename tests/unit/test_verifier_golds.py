"""Gold answers before a run: repaired where they plainly hold an answer, else counted and named."""

import json

import pytest

from expo_ray.config.errors import DataError
from expo_ray.config.schema import DataConfig, VerifierConfig
from expo_ray.data.sources import Problems
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
    assert found.text() == "100 gold answers checked, 1 repaired, 1 cannot be graded, first file-100: 'NaN'"


def test_many_unusable_golds_stop_the_run() -> None:
    with pytest.raises(DataError, match=r"2 of 3 gold answers cannot be graded .* file-1: 'NaN'.*max_unusable_golds"):
        checked_golds(problems("NaN", "", "7"), VerifierConfig())


def test_other_tasks_compare_texts_and_need_no_check() -> None:
    assert checked_golds(problems("anything at all"), VerifierConfig(name="toy")).unusable == 0


def test_golds_are_checked_when_problems_are_loaded(tmp_path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"question": "?", "answer": answer} for answer in (r"\\boxed{7}", "8", "9")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(name="jsonl", path=str(file), question_key="question", answer_key="answer", held_out_share=0.0)
    problems = Problems(data, 0, VerifierConfig())
    assert [problem.answers for problem in problems.training] == [("7",), ("8",), ("9",)]
    assert problems.golds == ["3 gold answers checked, 1 repaired, 0 cannot be graded"]
