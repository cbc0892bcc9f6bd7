"""Equality of two expressions: math-verify's grammar reads them, sympy evaluates them.

Two expressions are equal when they agree to DIGITS digits wherever both are defined: at one point for constants,
at several rational points otherwise (Schwartz-Zippel). Unlike simplification this ends soon, and unlike
math-verify's comparison it never rounds: 0.333333 is not 1/3.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from sympy.core.function import AppliedUndef

from expo_ray.verifier.math.number import MAX_ANSWER, MAX_DEPTH, MAX_EXPONENT, NotDecided, rational

DIGITS = 50
POINTS = 16
ENOUGH = 3
"""Points at which two expressions must both be defined before they can be called equal."""
TOLERANCE = sympy.Float(10, DIGITS) ** -(DIGITS - 12)

_SAFE_COMMANDS = (
    "frac sqrt cdot pi sin cos tan sec csc cot log ln exp arcsin arccos arctan sinh cosh tanh infty binom "
    "lfloor rfloor lceil rceil alpha beta gamma delta epsilon theta lambda mu nu rho sigma tau phi chi psi omega "
    "eta zeta kappa xi Delta Omega Phi Psi Sigma Theta degree max min"
)
_SAFE_CHARACTERS = re.compile(r"[0-9A-Za-z+\-*/^_(){}\[\].!|\\ ]*")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_INNER_DEGREE = re.compile(r"([0-9]+(?:\.[0-9]+)?|[A-Za-z]|\([^()]*\)) ?\\degree")
_MIXED = re.compile(r"(?<![0-9A-Za-z}).])([0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}")
_CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)


def parse(text: str) -> sympy.Basic | None:
    """The expression in a cleaned text; None where the grammar does not know all of it.

    Raises:
        NotDecided: a power or factorial too large to evaluate, or brackets nested too deep.
    """
    return _parse(text)


@lru_cache(maxsize=4096)
def _parse(text: str) -> sympy.Basic | None:
    number = rational(text)
    if number is not None:
        return sympy.Rational(number.numerator, number.denominator)
    if len(text) > MAX_ANSWER or not _SAFE_CHARACTERS.fullmatch(text):
        return None
    if not set(_COMMAND.findall(text)) <= set(_SAFE_COMMANDS.split()) or "\\\\" in text:
        return None
    if _depth(text) > MAX_DEPTH:
        raise NotDecided("nested too deep")
    bare = re.sub(r"_\{[A-Za-z0-9]+\}|\\[A-Za-z]+", " ", text)
    if re.search(r"[A-Za-z]{4,}", bare) or re.search(r"[0-9.] +[0-9.]", text) or re.search(r"[0-9)]_", text):
        return None
    text = _INNER_DEGREE.sub(r"(\1\\cdot \\frac{\\pi}{180})", text)
    text = _MIXED.sub(_mixed, text)
    # The grammar reads 2(3) as a mixed number and x(y) as a function where a product is meant.
    text = re.sub(r"(?<=[0-9)}a-eijk-z])\(", r"\\cdot (", _guard_functions(text)).replace("\x01", "(")
    if "\\degree" in text:
        return None
    try:
        found = latex2sympy(
            text,
            is_real=None if re.search(r"(?<![A-Za-z\\])i(?![A-Za-z])|i", bare) else True,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        # The grammar raises bare Exception and whatever its visitor runs into; all mean "not read".
        return None
    if not isinstance(found, sympy.Expr):
        return None
    _check_size(found)
    return _exact(found)


def _guard_functions(text: str) -> str:
    r"""Hide the brackets of function calls, `\sin(x)`, `\log_{2}(8)`, `f(x)`, from the product rule."""
    text = re.sub(r"(\\(?!pi|theta|alpha|beta|infty)[A-Za-z]+(?:[_^]\{[^{}]*\})*)\(", "\\1\x01", text)
    text = re.sub(r"(?<![A-Za-z\\])([fgh])\(", "\\1\x01", text)
    return re.sub(r"([{(+\-*/^]|^)\(", "\\1\x01", text)


def _mixed(match: re.Match[str]) -> str:
    whole, top, bottom = match.groups()
    if 0 < int(top) < int(bottom):
        return rf"({whole}+\frac{{{top}}}{{{bottom}}})"
    return match.group()


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _check_size(found: sympy.Expr) -> None:
    """Refuse what would take for ever to evaluate, before anything evaluates it."""
    for node in sympy.preorder_traversal(found):
        if isinstance(node, sympy.Pow):
            _check_argument(node.exp)
        elif isinstance(node, sympy.factorial | sympy.binomial | sympy.gamma):
            for argument in node.args:
                _check_argument(argument)


def _check_argument(argument: sympy.Expr) -> None:
    """An exponent or factorial's argument: no large number, factorial or large power in it."""
    if argument.is_Number and abs(argument) > MAX_EXPONENT:
        raise NotDecided("number too large to evaluate")
    if argument.has(sympy.factorial):
        raise NotDecided("factorial in a power or factorial")
    for power in argument.atoms(sympy.Pow):
        if power.base.is_Number and power.exp.is_Number:
            digits = float(power.exp) * math.log10(abs(float(power.base)) + 1)
            if digits > math.log10(MAX_EXPONENT):
                raise NotDecided("power tower too large to evaluate")


def _exact(found: sympy.Expr) -> sympy.Expr:
    """Decimals become the fractions that they are, `i` the imaginary unit."""
    changes: dict[sympy.Basic, sympy.Basic] = {
        number: sympy.Rational(str(number)) for number in found.atoms(sympy.Float)
    }
    for power in found.atoms(sympy.Pow):
        base, exponent = power.args
        if base.is_Number and base.is_negative and exponent.is_Rational and exponent.q % 2 == 1 and exponent.q > 1:
            # At school the cube root of -8 is -2, not the principal value.
            changes[power] = (-1) ** (exponent.p % 2) * sympy.Pow(-base, exponent)
    changes |= {symbol: sympy.I for symbol in found.atoms(sympy.Symbol) if symbol.name == "i"}
    return found.xreplace(changes) if changes else found


def same(answer: str, gold: str) -> tuple[bool, str] | None:
    """Whether two cleaned expressions are equal, and how it was found; None where one cannot be read.

    Raises:
        NotDecided: it would take too much to know.
    """
    left, right = parse(answer), parse(gold)
    if left is None or right is None:
        return None
    method = "symbolic" if left.free_symbols | right.free_symbols else "numeric"
    return equal(left, right), method


def equal(left: sympy.Expr, right: sympy.Expr) -> bool:
    """Equality by evaluation, see the module's docstring."""
    if left == right:
        return not left.has(sympy.nan, sympy.zoo)
    if sympy.oo in (left, right) or -sympy.oo in (left, right):
        return False
    needed = ENOUGH if left.free_symbols | right.free_symbols else 1
    met = 0
    for pair in _values(left, right):
        if pair is None:
            continue
        if not _close(*pair):
            return False
        met += 1
    return met >= needed


def ratio(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr | None:
    """The constant c with left = c * right everywhere, or None: two equations with one solution set have one."""
    values = [pair for pair in _values(left, right) if pair is not None and pair[1] != 0]
    if len(values) < ENOUGH or any(first == 0 for first, _second in values):
        return None
    quotients = [first / second for first, second in values]
    head = quotients[0]
    if all(abs(quotient - head) <= TOLERANCE * abs(head) for quotient in quotients):
        return head
    return None


def _close(first: Any, second: Any) -> bool:
    scale = max(abs(first), abs(second))
    return bool(scale == 0 or abs(first - second) <= TOLERANCE * scale)


def _values(left: sympy.Expr, right: sympy.Expr) -> Iterator[tuple[Any, Any] | None]:
    """Values of both at the same points; None where one is undefined, or leaves the reals that the other stays in."""
    unknown = sorted(left.atoms(AppliedUndef) | right.atoms(AppliedUndef), key=str)
    names = {call: sympy.Symbol("call_" + hashlib.sha1(str(call).encode()).hexdigest()[:8]) for call in unknown}
    left, right = left.xreplace(names), right.xreplace(names)
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    imaginary = left.has(sympy.I) or right.has(sympy.I)
    for point in range(POINTS if symbols else 1):
        at = {symbol: _coordinate(str(symbol), point) for symbol in symbols}
        first, second = _evaluate(left, at), _evaluate(right, at)
        if first is None or second is None:
            yield None
            continue
        leaves_reals = symbols and not imaginary and not (first.is_real and second.is_real)
        yield None if leaves_reals else (first, second)


def _coordinate(name: str, point: int) -> sympy.Rational:
    digest = hashlib.sha256(f"{name}/{point}".encode()).digest()
    size = sympy.Rational(int.from_bytes(digest[:3], "big") % 9973 + 89, 1009)
    if point == 5:
        size *= 97
    # Six points are all positive, for roots and logarithms; the others mix signs, to tell |xy| from xy.
    return -size if point > 5 and digest[3] % 2 else size


def _evaluate(found: sympy.Expr, at: dict[sympy.Basic, sympy.Rational]) -> sympy.Expr | None:
    value = found.xreplace(at) if at else found
    if not value.is_Rational:
        value = value.evalf(DIGITS, maxn=400)
    if value.free_symbols or not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return None
    parts = value.as_real_imag()
    if not all(part.is_Float or part.is_Rational for part in parts):
        return None
    # What evalf could not tell from zero has precision 1; it is zero.
    real, imaginary = (sympy.Integer(0) if part.is_Float and part._prec == 1 else part for part in parts)
    return real + sympy.I * imaginary
