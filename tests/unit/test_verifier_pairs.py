"""Our labelled lists: agreement, and no wrong answer accepted."""

from pathlib import Path

import pytest

from bench.verifier import read_pairs
from expo_ray.verifier.extract import boxed
from expo_ray.verifier.math.words import NotDecided
from expo_ray.verifier.tasks import make_task

LISTS = sorted((Path(__file__).parent.parent / "data").glob("pairs_*.txt"))


def test_the_lists_are_large_and_balanced() -> None:
    pairs = [pair for path in LISTS for pair in read_pairs(path)]
    equal = sum(pair[2] for pair in pairs)
    assert len(pairs) >= 600
    assert 0.4 < equal / len(pairs) < 0.6


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_labelled_pairs(path: Path) -> None:
    task = make_task("math", {"name": "math"})
    accepted, refused = [], []
    pairs = read_pairs(path)
    for answer, gold, equal in pairs:
        extracted = task.extract(f"So the answer is $\\boxed{{{answer}}}$.")
        assert extracted is not None
        try:
            right, _method = task.grade(extracted, gold, {})
        except NotDecided:
            right = False
        if right and not equal:
            accepted.append((answer, gold))
        if equal and not right:
            refused.append((answer, gold))
    assert accepted == []
    assert len(refused) <= 0.02 * len(pairs), refused


def test_pairs_survive_the_box() -> None:
    assert boxed(r"\boxed{\{1,2\}}") == r"\{1,2\}"


@pytest.mark.parametrize(
    ("answer", "gold", "method"),
    [
        ("5", "5", "exact"),
        ("0.5", r"\frac12", "numeric"),
        (r"\sqrt{8}", r"2\sqrt2", "numeric"),
        ("(x+1)^2", "x^2+2x+1", "symbolic"),
        (r"\{2,1\}", r"\{1,2\}", "set"),
        ("[1, 2.0]", "[1,2]", "interval"),
        (r"\begin{pmatrix}0.5\\1\end{pmatrix}", r"\begin{pmatrix}\frac12\\1\end{pmatrix}", "matrix"),
        ("Monday", r"\text{monday}", "text"),
    ],
)
def test_the_method_that_decided(answer: str, gold: str, method: str) -> None:
    assert make_task("math", {}).grade(answer, gold, {}) == (True, method)


def test_percent_as_a_unit_is_a_choice() -> None:
    assert not make_task("math", {}).grade(r"50\%", "50", {})[0]
    assert make_task("math", {"percent_is_unit": True}).grade(r"50\%", "50", {})[0]
    assert not make_task("math", {"percent_is_unit": True}).grade(r"50\%", "5", {})[0]
