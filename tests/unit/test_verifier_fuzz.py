"""Random LaTeX-like text: everything ends in an answer or NotDecided, and no changed number is accepted."""

import time

import sympy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expo_ray.verifier import extract
from expo_ray.verifier.math import compare
from expo_ray.verifier.math.clean import clean
from expo_ray.verifier.math.shape import read
from expo_ray.verifier.math.value import rational
from expo_ray.verifier.math.words import NotDecided

COMMANDS = (
    r"\frac \sqrt \boxed{ \text{ \left( \right) \{ \} \pm \cup \infty \pi \cdot \begin{pmatrix} \end{pmatrix} \\ \%"
)
MORE = r"\circ \le \in \mathbb{R} \overline{ \log \sin cm \text{cm} and or \approx \, \! {,} 1,000 0.5 \dfrac12 ####"
ODD = ["the answer is ", "A:", "\u202e", "\ud800", "\x00", "\x01", "\x02", "\u00bd", "\u00b2", "\u2212", "\u0663"]
PIECES = [*"0123456789xyabnife+-*/^_=<>()[]{}|,.;:!%$ ~'\\&", *COMMANDS.split(), *MORE.split(), *ODD]
latex = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@quick
@given(latex)
def test_extraction_never_raises(text: str) -> None:
    for find in (extract.boxed, extract.stated, extract.hashed, extract.bare, extract.last_math, extract.toy):
        found = find(text)
        assert found is None or found != ""


@quick
@given(latex)
def test_cleaning_is_stable(text: str) -> None:
    once = clean(text)
    assert len(once) <= 8 * len(text) + 8
    assert clean(once) is not None


@quick
@given(latex)
def test_shapes_hold_parts_or_are_refused(text: str) -> None:
    try:
        shape = read(clean(text))
    except NotDecided:
        return
    assert shape.kind in {"leaf", "list", "tuple", "set", "union", "matrix", "relation"}


@settings(quick, max_examples=40)
@given(latex, latex)
def test_comparison_ends_in_a_verdict(answer: str, gold: str) -> None:
    start = time.monotonic()
    try:
        right, method = compare.equal(answer, gold)
    except NotDecided:
        right, method = False, "none"
    assert isinstance(right, bool)
    assert method in {"exact", "numeric", "symbolic", "set", "interval", "matrix", "text", "none"}
    assert time.monotonic() - start < 20


numbers = st.fractions(min_value=-1000, max_value=1000, max_denominator=60)


@quick
@given(numbers, numbers)
def test_numbers_are_equal_exactly_when_they_are(first, second) -> None:
    said = f"\\frac{{{first.numerator}}}{{{first.denominator}}}"
    gold = f"{second.numerator}/{second.denominator}"
    assert compare.equal(said, gold)[0] == (first == second)
    assert rational(clean(said)) == first


@settings(quick, max_examples=20)
@given(st.integers(-9, 9), st.integers(1, 9), st.integers(-9, 9), st.sampled_from([-1, 1]))
def test_a_changed_coefficient_is_never_accepted(a: int, b: int, c: int, change: int) -> None:
    gold = f"{a}x^2+{b}x+{c}"
    assert compare.equal(f"{c}+{b}x+{a}x^2", gold)[0]
    assert not compare.equal(f"{a}x^2+{b}x+{c + change}", gold)[0]
    assert not compare.equal(f"{a}x^2+{b + change}x+{c}", gold)[0]


LEAVES = st.one_of(st.integers(-9, 9).map(sympy.Integer), st.sampled_from(sympy.symbols("x y", real=True)))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, st.integers(2, 3)).map(lambda pair: pair[0] ** pair[1]),
        st.tuples(inner, st.integers(1, 9)).map(lambda pair: pair[0] / pair[1]),
        inner.map(lambda one: sympy.sqrt(one**2 + 2)),
        inner.map(sympy.sin),
        inner.map(lambda one: sympy.exp(one / 5)),
    ),
    max_leaves=5,
)


def equal_by_sympy(first: sympy.Expr, second: sympy.Expr) -> bool:
    """Whether two expressions agree to 30 of 40 digits, at points where both are defined everywhere."""
    points = [(sympy.Rational(3, 7), sympy.Rational(-5, 3)), (sympy.Rational(11, 9), sympy.Rational(2, 5))]
    x, y = sympy.symbols("x y", real=True)
    for a, b in points:
        gap, *sizes = (abs(sympy.N(side.subs({x: a, y: b}), 40)) for side in (first - second, first, second))
        # e^{-102} is not 0: small values count as well.
        if gap > sympy.Float("1e-30") * max(sizes):
            return False
    return True


def equal_by_us(first: sympy.Expr, second: sympy.Expr) -> bool:
    """What a response would earn: a value too large to evaluate, such as e^{50000}, is not accepted."""
    try:
        return compare.equal(sympy.latex(first), sympy.latex(second))[0]
    except NotDecided:
        return False


@settings(quick, max_examples=60)
@given(TREES, st.sampled_from([sympy.expand, sympy.together, sympy.factor_terms]))
def test_expressions_rewritten_by_sympy_stay_equal(gold: sympy.Expr, rewrite) -> None:
    assert compare.equal(sympy.latex(rewrite(gold)), sympy.latex(gold))[0]


@settings(quick, max_examples=60)
@given(TREES, TREES)
def test_two_expressions_are_equal_exactly_when_sympy_says_so(gold: sympy.Expr, other: sympy.Expr) -> None:
    for answer in (other, gold + other - other.subs(sympy.Symbol("x", real=True), 1)):
        assert equal_by_us(answer, gold) == equal_by_sympy(answer, gold)
