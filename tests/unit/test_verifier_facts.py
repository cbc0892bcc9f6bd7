# ruff: noqa: RUF001 - full-width letters are an attack
"""Facts from elsewhere: Math-Verify's public test expressions, pint's units, reasoning-gym's scorers."""

import builtins
import inspect
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from expo_ray.verifier.math.units import TABLE
from expo_ray.verifier.tasks import EVALUATING_SCORERS, make_task
from expo_ray.verifier.worker import Grader

# The expressions of Math-Verify's tests at commit 5d148cf with its own label; `ours` is what this grader says.
EXPRESSIONS = Path(__file__).parent.parent / "data" / "math_verify_expressions.jsonl"


def test_math_verifys_expressions() -> None:
    rows = [json.loads(line) for line in EXPRESSIONS.open(encoding="utf-8")]
    grader = Grader(make_task("math", {}))
    said = [grader.verdict(row["response"], [row["gold"]], {})[0] == "correct" for row in rows]
    changed = [row for row, right in zip(rows, said, strict=True) if right != row["ours"]]
    assert changed == []
    # It calls no other wrong that counts here; it accepts rounding, percents and last sides of chains, which do not.
    more = [row["response"] for row in rows if row["ours"] and not row["math_verify"]]
    assert more == ["Answer $ \n 9 \n $"]
    assert sum(row["ours"] == row["math_verify"] for row in rows) >= 0.75 * len(rows)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("inch", "meter"), ("foot", "meter"), ("yard", "meter"), ("mile", "meter"), ("kilometer", "meter"),
        ("centimeter", "meter"), ("fathom", "meter"), ("angstrom", "meter"), ("ounce", "ounce"), ("pound", "ounce"),
        ("milliliter", "liter"), ("gallon", "tablespoon"), ("quart", "tablespoon"), ("pint", "tablespoon"),
        ("cup", "tablespoon"), ("minute", "second"), ("hour", "second"), ("day", "second"), ("week", "second"),
        ("year", "month"), ("mph", "knot"), ("kilojoule", "joule"), ("kilopascal", "pascal"), ("acre", "hectare"),
    ],
)  # fmt: skip
def test_sizes_of_units_are_pints(name: str, base: str) -> None:
    pint = pytest.importorskip("pint")
    ours = TABLE[name].factor / TABLE[base].factor
    # pint takes fathom and acre from the survey foot, two millionths longer.
    tolerance = 1e-5 if name in ("fathom", "acre") else 1e-12
    assert float(ours) == pytest.approx(pint.UnitRegistry().Quantity(1, name).to(base).magnitude, rel=tolerance)
    assert isinstance(ours, Fraction)


def test_the_scorers_that_evaluate_answers_are_listed() -> None:
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    evaluates = re.compile(r"(?<![\w.])(?:sp\.|sympy\.)?(?:eval|exec|parse_expr|sympify)\(")
    found = {name for name, (kind, _) in DATASETS.items() if evaluates.search(inspect.getsource(kind.score_answer))}
    # The parser of propositional logic is reasoning-gym's own.
    assert found - {"propositional_logic"} == set(EVALUATING_SCORERS)


def test_scorers_that_evaluate_answers_are_refused_by_default() -> None:
    pytest.importorskip("reasoning_gym")
    task = make_task("reasoning_gym", {})
    with pytest.raises(PermissionError, match=r"verifier\.run_answers=true"):
        task.grade("[[0]]", "0", {"source_dataset": "n_queens"})
    assert not task.runs_answers
    assert make_task("reasoning_gym", {"run_answers": True}).runs_answers


RUN = "setattr(__import__('builtins'), 'EXPO_RAN', 1)"
ATTACKS = [
    RUN, f"[{RUN}]", f"[1 for _ in [{RUN}]]", f"(lambda: {RUN})()", f"(x := {RUN})", f"{RUN}!", f"1 if {RUN} else 2",
    f'f"{{{RUN}}}"', f"sin({RUN})", f"sin(x=[{RUN}])", f"S({RUN!r})", f"sin({RUN!r})", repr(RUN), f"x + {RUN!r}",
    f"exec({RUN!r})", f"eval({RUN!r})", f"[{RUN}, 1][1]", f"{{1: {RUN}}}", f"x[{RUN}]", f"0.2[{RUN}]", f"1;{RUN}",
    "().__class__.__base__.__subclasses__()", "__builtins__", "ｅval('1')", "Lambda(x, x)(1)", "Integral(x, x)",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(EVALUATING_SCORERS))
def test_no_code_of_an_answer_runs(name: str) -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    task = make_task("reasoning_gym", {"run_answers": True})
    entry = reasoning_gym.create_dataset(name, size=1, seed=4)[0]
    right = entry["metadata"]["expression"] if name == "countdown" else entry["answer"]
    assert task.grade(str(right), entry["answer"], entry) == (True, "text")
    for attack in ATTACKS:
        assert task.grade(attack, entry["answer"], entry)[0] is False, attack
        assert not hasattr(builtins, "EXPO_RAN"), attack


def test_an_answer_that_is_code_runs_where_nothing_looks_at_it() -> None:
    # What the test above would see without the check of the form.
    score = pytest.importorskip("reasoning_gym").get_score_answer_fn("n_queens")
    score(f"[{RUN}]", {"answer": "", "metadata": {"valid_answers": []}})
    assert builtins.__dict__.pop("EXPO_RAN") == 1
