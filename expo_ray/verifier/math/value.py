"""Equality of two expressions by evaluating them. Nothing is rounded: 0.333333 is not 1/3.

Exact fractions decide where they can hold both expressions: constants, and rational functions, which are compared at
random points (two different ones agree there with a chance of almost nothing, by Schwartz-Zippel). Everything else
(roots, logarithms, trigonometry, unknowns in exponents) is evaluated by mpmath, with as many digits as the sizes of the
intermediate values ask for.
"""

import hashlib
import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from mpmath import mp

from expo_ray.verifier.math.syntax import Node, contains, parse, symbols
from expo_ray.verifier.math.words import NotDecided

MAX_BITS = 200_000
"""Of an exact number; a larger one is not compared."""
MAX_FACTORIAL = 5000
MAX_TERMS = 1000
MAX_SPAN = 3000
"""Decimal exponent of the largest or smallest intermediate value for which digits are found."""
POINTS = 10
ENOUGH = 4
"""Points at which two expressions must both be defined before they can be called equal."""


class Undefined(ArithmeticError):
    """No value here: a division by zero, the logarithm of a negative number."""


class _Gap(Undefined):
    """The answer has no value where the gold has one."""


class _NotExact(ValueError):
    """Fractions cannot hold the expression."""


def _draw(name: str, point: int) -> bytes:
    return hashlib.sha256(f"{name}/{point}".encode()).digest()


class _Exact:
    """Evaluates trees in fractions; unknowns, e and pi are random fractions of the point."""

    def __init__(self, point: int = 0, bound: dict[str, Any] | None = None) -> None:
        self.point = point
        self.bound = bound or {}
        """Values of running indices."""

    def value(self, node: Node) -> Any:
        kind, *children = node
        if kind == "num":
            return self.number(children[0])
        if kind == "sym":
            name = children[0]
            return self.number(self.bound[name]) if name in self.bound else self.symbol(name)
        if kind == "^":
            return self.power(self.value(children[0]), children[1])
        if kind in ("sum", "prod"):
            return self.series(kind, *children)
        if kind == "int":
            return self.integral(*children)
        if kind == "apply":
            return self.symbol("/".join([children[0], *(str(self.value(child)) for child in children[1:])]))
        values = [self.value(child) for child in children]
        if kind == "/" and not values[1]:
            raise Undefined("division by zero")
        return self.checked(_ARITHMETIC[kind](*values)) if kind in _ARITHMETIC else self.call(kind, values)

    def series(self, kind: str, index: str, low: Node, high: Node, body: Node) -> Any:
        first, last = self.whole(self.value(low)), self.whole(self.value(high))
        if last - first > MAX_TERMS:
            raise NotDecided("too many terms")
        outer, total = self.bound, self.number(Fraction(kind == "prod"))
        for number in range(first, last + 1):
            self.bound = outer | {index: Fraction(number)}
            term = self.value(body)
            total = self.checked(total + term if kind == "sum" else total * term)
        self.bound = outer
        return total

    def integral(self, index: str, low: Node, high: Node, body: Node) -> Any:
        raise _NotExact("an integral")

    def number(self, value: Fraction) -> Any:
        return value

    def symbol(self, name: str) -> Any:
        if name == "i":
            raise _NotExact(name)
        return Fraction(int.from_bytes(_draw(name, self.point)[:8], "big") - 2**63, 2**31 - 1)

    def checked(self, value: Any) -> Any:
        if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
            raise NotDecided("number too large")
        return value

    def power(self, base: Any, exponent: Node) -> Any:
        if symbols(exponent) or contains(exponent, "e", "\\pi"):
            raise _NotExact("an unknown exponent")
        wanted = self.value(exponent)
        if not base and wanted <= 0:
            raise Undefined("zero to nothing or less")
        size = 0 if base in (1, -1) else max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(wanted) > MAX_BITS:
            raise NotDecided("power too large")
        return _root(base, wanted.denominator) ** wanted.numerator

    def whole(self, value: Any) -> int:
        if value.denominator != 1:
            raise _NotExact("not whole")
        return int(value)

    def call(self, name: str, values: list[Any]) -> Any:
        if name not in _EXACT or self.point:
            raise _NotExact(name)
        return self.checked(Fraction(_EXACT[name](*values)))


def _root(value: Fraction, degree: int) -> Fraction:
    """The exact root of a fraction, real also for negative ones where the degree is odd."""
    if degree == 1:
        return value
    if degree > 64 or (value < 0 and degree % 2 == 0):
        raise _NotExact("not real")
    with mp.workprec(64 + max(value.numerator.bit_length(), value.denominator.bit_length())):
        root = Fraction(*(int(mp.nint(mp.root(part, degree))) for part in (abs(value.numerator), value.denominator)))
    if root**degree != abs(value):
        raise _NotExact("not a perfect power")
    return -root if value < 0 else root


def _natural(value: Fraction) -> int:
    if value.denominator != 1 or value < 0:
        raise _NotExact("not a natural number")
    if value > MAX_FACTORIAL:
        raise NotDecided("factorial too large to evaluate")
    return int(value)


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "+": lambda *values: sum(values), "*": operator.mul, "-": operator.neg, "/": operator.truediv,
}  # fmt: skip
_EXACT: dict[str, Callable[..., Any]] = {
    "abs": abs, "floor": math.floor, "ceil": math.ceil, "max": max, "min": min,
    "fact": lambda n: math.factorial(_natural(n)),
    "fact2": lambda n: math.prod(range(_natural(n), 0, -2)),
    "binom": lambda n, k: math.comb(_natural(n), _natural(k)),
    "gcd": lambda *values: math.gcd(*map(_natural, values)),
    "lcm": lambda *values: math.lcm(*map(_natural, values)),
}  # fmt: skip
_NUMERIC: dict[str, Callable[..., Any]] = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "sec": mp.sec, "csc": mp.csc, "cot": mp.cot, "arcsin": mp.asin,
    "arccos": mp.acos, "arctan": mp.atan, "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh, "exp": mp.exp,
    "ln": mp.log, "lg": mp.log10, "log": mp.log10, "abs": abs, "floor": mp.floor, "ceil": mp.ceil, "max": max,
    "min": min, "cis": lambda angle: mp.mpc(mp.cos(angle), mp.sin(angle)),
}  # fmt: skip


class _Numeric(_Exact):
    """The same in mpmath at its current precision, which the caller sets.

    real: whether even roots and logarithms of negative numbers are undefined; else they have their principal value.
    counting: whether unknowns are whole numbers.
    """

    def __init__(self, point: int = 0, real: bool = True, counting: bool = False) -> None:
        super().__init__(point)
        self.real, self.counting = real, counting
        self.span = 0.0
        """Largest decimal exponent, by absolute value, of any intermediate value."""

    def number(self, value: Fraction) -> Any:
        if isinstance(value, mp.mpf):
            return value
        self.span = max(self.span, 0.30103 * max(value.numerator.bit_length(), value.denominator.bit_length()))
        return self.checked(mp.mpf(value.numerator) / value.denominator)

    def symbol(self, name: str) -> Any:
        if name in ("e", "\\pi", "i"):
            return {"e": +mp.e, "\\pi": +mp.pi, "i": mp.mpc(0, 1)}[name]
        if self.counting:
            # Distinct from point to point: what holds at n = 1 alone must not be met twice.
            start, step = _draw(name, 0)[:2]
            count = 1 + (start + self.point * (1 + step % 12)) % 13
            return mp.mpf(count * 101 if self.point % 4 == 3 else count)
        digest = _draw(name, self.point)
        size = mp.mpf(int.from_bytes(digest[:3], "big") % 9973 + 89) / 1009
        # Some points are all positive, for roots and logarithms; the others mix signs, to tell |xy| from xy.
        if self.point % 2 and digest[3] % 2:
            size = -size
        # Far points tell max(x, 10) from 10.
        return size * {2: 97, 3: mp.mpf(10) ** 9, 5: mp.mpf(10) ** -9}.get(self.point, 1)

    def integral(self, index: str, low: Node, high: Node, body: Node) -> Any:
        outer, span = self.bound, self.span
        if contains(body, "apply", "int", "sum", "prod"):
            raise Undefined("no integral that is cheap to find")

        def at(point: Any) -> Any:
            self.bound = outer | {index: point}
            return self.value(body)

        try:
            found = mp.quad(at, [self.value(low), self.value(high)])
        finally:
            # The sizes at points close to a bound say nothing of the integral's digits.
            self.bound, self.span = outer, span
        return self.checked(found)

    def checked(self, value: Any) -> Any:
        if mp.isnan(value) or mp.isinf(value):
            raise Undefined("not a number")
        if value:
            self.span = max(self.span, abs(0.30103 * float(mp.mag(value))))
            if self.span > MAX_SPAN:
                raise NotDecided("number too large to evaluate")
        return value

    def power(self, base: Any, exponent: Node) -> Any:
        known = exact(exponent, self.bound)
        wanted = self.value(exponent) if known is None else self.number(known)
        if not base:
            if mp.re(wanted) <= 0:
                raise Undefined("zero to nothing or less")
            return base
        if abs(wanted) * abs(mp.log(base)) > 2.4 * MAX_SPAN:
            raise NotDecided("power too large to evaluate")
        if mp.im(base) == 0 and mp.re(base) < 0 and mp.im(wanted) == 0:
            if known is not None and known.denominator % 2:
                # At school the cube root of -8 is -2, not the principal value.
                size = mp.power(-base, wanted)
                return self.checked(-size if known.numerator % 2 else size)
            if mp.isint(wanted):
                return self.checked(mp.power(base, int(wanted)))
            if self.real:
                raise Undefined("not real")
        return self.checked(mp.power(base, wanted))

    def whole(self, value: Any) -> int:
        if mp.im(value) or not mp.isint(value):
            raise Undefined("not whole")
        return int(mp.re(value))

    def call(self, name: str, values: list[Any]) -> Any:
        first = values[0]
        if self.real and any(mp.im(value) for value in values):
            raise Undefined("not real")
        if name in ("ln", "lg", "log") and (not first or (self.real and first < 0)):
            raise Undefined("no logarithm")
        if self.real and name in ("arcsin", "arccos") and abs(first) > 1:
            raise Undefined("not real")
        if name not in _NUMERIC:
            try:
                return self.number(Fraction(_EXACT[name](*(Fraction(self.whole(value)) for value in values))))
            except _NotExact as error:
                raise Undefined(str(error)) from error
        if name == "exp" and abs(first) > 2.4 * MAX_SPAN:
            raise NotDecided("power too large to evaluate")
        try:
            return self.checked(_NUMERIC[name](*values))
        except (ZeroDivisionError, ValueError) as error:
            raise Undefined(f"{name} has a pole here") from error


def exact(node: Node, bound: dict[str, Any] | None = None) -> Fraction | None:
    """The value of a constant tree as a fraction; None where it is not rational or not defined.

    bound: values of running indices.

    Raises:
        NotDecided: a number too large.
    """
    if symbols(node, frozenset(bound or ())) or contains(node, "e", "\\pi"):
        return None
    try:
        return Fraction(_Exact(0, bound).value(node))
    except (_NotExact, Undefined):
        return None


def rational(text: str) -> Fraction | None:
    r"""The value of a cleaned number (integer, decimal, fraction, mixed, scientific, repeating); None if it is none.

    >>> rational(r"-1\frac{1}{2}")
    Fraction(-3, 2)

    Raises:
        NotDecided: a number too large.
    """
    tree = parse(text)
    return exact(tree) if tree is not None and _is_written_out(tree) else None


def _is_written_out(tree: Node) -> bool:
    kind, *parts = tree
    if kind in ("*", "^"):
        power = parts[1] if kind == "*" and parts[0][0] == "num" else tree
        return power[:2] == ("^", ("num", 10)) and _is_written_out(power[2])
    return kind == "num" or (kind in ("-", "/") and all(map(_is_written_out, parts)))


def approximate(node: Node) -> float | None:
    """The value of a real constant; None where it has none."""
    with mp.workdps(50):
        try:
            found = _Numeric().value(node)
        except (Undefined, NotDecided):
            return None
        return None if mp.im(found) else float(mp.re(found))


def equal(left: Node, right: Node) -> bool:
    """Whether an answer's tree has the value of a gold's wherever that one is defined.

    Raises:
        NotDecided: it would take too much to know.
    """
    unknowns = symbols(left) | symbols(right)
    constant = not unknowns and not any(contains(side, "e", "\\pi") for side in (left, right))
    try:
        if constant:
            return bool(_Exact().value(left) == _Exact().value(right))
        return all(_Exact(point).value(left) == _Exact(point).value(right) for point in (1, 2))
    except Undefined:
        return False
    except _NotExact:
        pass
    except NotDecided:
        if constant:
            raise
    return _numeric_equal(left, right, unknowns)


def _numeric_equal(left: Node, right: Node, unknowns: frozenset[str]) -> bool:
    complex_ = any(contains(side, "i", "cis") for side in (left, right))
    if not unknowns:
        try:
            return _close(left, right, lambda: _Numeric(real=False))
        except Undefined:
            return False
    counting = unknowns <= {"n", "m", "k", "N"} and any(contains(side, "floor", "ceil") for side in (left, right))
    # Sequences such as (-1)^n are real at whole numbers only; what is real nowhere is compared as complex.
    for real, whole in ((not complex_, counting), (True, True), (False, False)):
        met = gaps = 0
        for point in range(POINTS):
            try:
                if not _close(left, right, lambda at=point, r=real, w=whole: _Numeric(at, r, w)):  # type: ignore[misc]
                    return False
                met += 1
            except _Gap:
                gaps += 1
            except (Undefined, NotDecided):
                continue
        if met >= ENOUGH:
            # Defined on a part only of where the gold is: \sqrt{x}^2 is not |x|.
            return gaps == 0
    return False


def _close(left: Node, right: Node, numbers: Callable[[], _Numeric]) -> bool:
    """Equality at one point: the difference vanishes at a precision well beyond the sizes met on the way."""
    with mp.workdps(50):
        rough = numbers()
        gold = rough.value(right)
        try:
            difference = abs(rough.value(left) - gold)
        except Undefined as error:
            raise _Gap(str(error)) from error
        if difference > mp.mpf(10) ** int(rough.span - 40):
            return False
    span = int(rough.span) + 1
    with mp.workdps(2 * span + 100):
        fine = numbers()
        return bool(abs(fine.value(left) - fine.value(right)) < mp.mpf(10) ** -(span + 80))


def proportional(left: Node, right: Node) -> int:
    """The sign of the constant c with left = c * right everywhere; 0 where there is none, or c is 0."""
    # Then left * right' is right * left' whatever the unknowns of the primed ones are.
    if not equal(("*", left, _primed(right, symbols(right))), ("*", right, _primed(left, symbols(left)))):
        return 0
    for point in range(POINTS):
        with mp.workdps(50):
            try:
                quotient = _Numeric(point).value(("/", left, right))
            except (Undefined, NotDecided):
                continue
            return 0 if mp.im(quotient) else int(mp.sign(quotient))
    return 0


def _primed(node: Node, names: frozenset[str]) -> Node:
    """A tree with other unknowns, and other functions, in the place of its own."""
    kind, *children = node
    if kind in ("sym", "apply", "sum", "prod", "int") and (kind == "apply" or children[0] in names):
        children[0] += "'"
    return (kind, *(_primed(child, names) if isinstance(child, tuple) else child for child in children))
