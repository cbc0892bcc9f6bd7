"""Extraction of each task, strict and lenient, and tasks that plug in."""

import pytest

from expo_ray.rewards import python_tests
from expo_ray.rewards.python_tests import BadTests
from expo_ray.verifier.tasks import MathTask, Task, make_task, task_problem


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"First \boxed{1}, then \boxed{2}.", "2"),
        (r"So \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \left\{ 1, 2 \right\} } done", r"\left\{ 1, 2 \right\}"),
        (r"\fbox{7}", "7"),
        (r"\boxed 7", "7"),
        (r"\boxed{x=\boxed{3}}", "3"),
        (r"done \boxed{4} and cut off \boxed{\frac{1}{", "4"),
        ("The answer is 12.", "12"),
        ("The answer is 2.5. I hope it is right.", "2.5"),
        ("the final answer is: **42**", "42"),
        ("The answer is $\\frac{1}{2}$ cm. Good.", "$\\frac{1}{2}$ cm"),
        ("Answer: 7\nThat was all", "7"),
        ("We add.\n#### 1,234", "1,234"),
        ("so we find\nthat $x = 3$", "x = 3"),
        ("3/4", "3/4"),
        (r"\frac{3}{4}", r"\frac{3}{4}"),
    ],
)
def test_math_extraction(response: str, answer: str) -> None:
    assert make_task("math", {}).extract(response) == answer


@pytest.mark.parametrize("response", ["", " ", "I do not know what to say here", r"\boxed{}", r"\boxed{1", "\\boxed"])
def test_math_finds_no_answer(response: str) -> None:
    assert make_task("math", {}).extract(response) is None


def test_strict_takes_boxes_only() -> None:
    strict = make_task("math", {"strict": True})
    assert strict.extract("The answer is 12.") is None
    assert strict.extract(r"\boxed{12}") == "12"


def test_gsm8k() -> None:
    task = make_task("gsm8k", {})
    assert task.extract("He has 3+4=<<3+4=7>>7.\n#### 7") == "7"
    assert task.extract("In all she pays $1,234 for 3 of them, so $18.50") == "$18.50"
    assert task.grade("$18.50", "18.5", {})[0]
    assert task.grade("1,000", "Some work\n#### 1000", {})[0]
    assert not task.grade("7", "Some work 7\n#### 8", {})[0]
    assert task.extract("no number at all") is None


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"\boxed{\text{(B)}}", "B"),
        ("The answer is (C).", "C"),
        ("We choose\nD", "D"),
        ("The answer is A. Because", "A"),
        ("The answer is B, not C.", "B"),
        ("Between (A) and (D) I take (D)", "D"),
        ("I like it", None),
    ],
)
def test_choice(response: str, letter: str | None) -> None:
    assert make_task("choice", {}).extract(response) == letter


def test_choice_grades_letters() -> None:
    task = make_task("choice", {})
    assert task.grade("B", "(B)", {}) == (True, "exact")
    assert not task.grade("B", "C", {})[0]


def test_toy_is_exact_text() -> None:
    task = make_task("toy", {})
    assert task.extract("3+4=7;7+2=9;A:79.") == "79"
    assert task.extract("A:1.;A:2.3") == "2"
    assert task.extract("3+4=7;A:7") is None
    assert task.extract("A:.") is None
    assert task.grade("79", "79", {}) == (True, "exact")
    assert not task.grade("079", "79", {})[0]


def test_reasoning_gym_scores_with_its_own_scorer() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=3)[0]
    task = make_task("reasoning_gym", {})
    extracted = task.extract(f"I think <answer>{entry['answer']}</answer>")
    assert extracted is not None
    assert task.grade(extracted, entry["answer"], entry)[0]
    assert task.grade(extracted, entry["answer"], entry["metadata"])[0]
    assert not task.grade(extracted + "1", entry["answer"], entry)[0]


class Shouting(Task):
    def extract(self, response: str) -> str | None:
        return response.strip() or None

    def grade(self, extracted: str, gold: str, meta: dict) -> tuple[bool, str]:
        return extracted == gold.upper(), "text"


def test_a_task_by_import_path() -> None:
    task = make_task(f"{__name__}:Shouting", {})
    assert task.grade("YES", "yes", {}) == (True, "text")


@pytest.mark.parametrize("name", ["nonsense", "json:loads", "expo_ray.verifier.tasks:make_task"])
def test_what_is_no_task_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="verifier"):
        make_task(name, {})


def test_an_import_path_is_looked_at_without_being_run(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_task.py").write_text("raise SystemExit\nclass Mine: ...\nOther = Mine\n")
    (tmp_path / "own_broken.py").write_text("\nclass Mine(:\n")
    for name in ("math", "own_task:Mine", "own_task:Other", "expo_ray.verifier.tasks:MathTask"):
        assert task_problem(name) is None
    told = {
        name: task_problem(name) or ""
        for name in ("own_tasks:Mine", "no.such:Mine", "own_task:Mime", "own_broken:Mine")
    }
    assert "no module own_tasks is found" in told["own_tasks:Mine"]
    assert "no module no.such is found" in told["no.such:Mine"]
    assert told["own_task:Mime"].endswith("own_task.py has no class Mime; did you mean 'Mine'?")
    assert "own_broken.py line 2 is not Python" in told["own_broken:Mine"]


def test_a_task_that_does_not_exist_has_a_neighbour() -> None:
    told = task_problem("mth") or ""
    assert "did you mean 'math'?" in told and "reasoning_gym" in told and "package.module:Class" in told


def test_import_path_finds_the_built_in_class() -> None:
    assert isinstance(make_task("expo_ray.verifier.tasks:MathTask", {}), MathTask)


@pytest.mark.parametrize(
    "test",
    [
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(1), 2)",
        "def test_f():\n    assert f(1) == 2\nif __name__ == '__main__':\n    test_f()",
        "import random\nrandom.seed(0)\ndef test_f():\n    assert f(1) == 2",
    ],
)
@pytest.mark.parametrize("entry", [{}, {"entry_point": "f"}])
def test_asserts_that_nothing_runs_are_refused(test: str, entry: dict) -> None:
    """Any code would pass such tests."""
    with pytest.raises(BadTests, match="nothing calls"):
        python_tests.tests_of("", {"test": test, **entry})


def test_asserts_that_run_are_taken() -> None:
    check = "def check(candidate):\n    assert candidate(1) == 2"
    for test in (
        "assert f(1) == 2",
        "for i in range(3):\n    if i:\n        assert f(i) == 2 * i",
        "def test_f():\n    assert f(1) == 2\ntest_f()",
        "from numpy.testing import assert_equal\nassert_equal(f(1), 2)",
        "if f(1) != 2:\n    raise AssertionError('assert')",
        f"{check}\ncheck(f)",
    ):
        assert python_tests.tests_of("", {"test": test}) == [test]
    assert python_tests.tests_of("", {"test": check, "entry_point": "f"}) == [check]
    with pytest.raises(BadTests, match="nothing calls"):
        python_tests.tests_of("", {"test": check})
