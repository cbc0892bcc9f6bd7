r"""Whether an answer is a gold answer in another notation. Doubt is decided against the answer.

The order is cheap to dear: the same text, the same exact number, the same quantity, the same shape with equal
parts, and last the same expression (math-verify and sympy).
"""

import re
from fractions import Fraction

from expo_ray.verifier.math import expression, words
from expo_ray.verifier.math.clean import clean
from expo_ray.verifier.math.number import MAX_ANSWER, rational
from expo_ray.verifier.math.relation import is_name, relations_equal, value_of_assignment
from expo_ray.verifier.math.shape import Shape, read
from expo_ray.verifier.math.units import DEGREE, PERCENT, RADIAN, Quantity, quantity

Graded = tuple[bool, str]

_BASE = re.compile(r"[({]?([0-9A-Za-z.]+)[)}]?_\{([0-9a-z]+)\}")
_TIME = re.compile(r"0?([0-9]{1,2}):([0-9]{2}(?::[0-9]{2})?)(?: ?([ap])\.? ?m)?", re.IGNORECASE)
_RATIO = re.compile(r"[^:]+(?::[^:]+)+")
_INFINITE = ("\\infty", "+\\infty", "-\\infty")


def warm() -> None:
    """Read some of everything, so that forked processes find the grammar's tables filled."""
    texts = r"\frac{x+1}{2}\sqrt{3}-\pi, 2^{3}\cdot x^{2}y+5i, \sin(x)\cos^{2} x, \log_{2} 8!, |x|, f(x), "
    texts += r"\binom{5}{2}, (x-1)(x+2)/3, a_{1}+e^{x}, \sqrt[3]{2}, 3.5x, -x(y+1)"
    for text in texts.split(", "):
        expression.same(text, text + "+1")


def equal(answer: str, gold: str, percent_is_unit: bool = False) -> Graded:
    """Whether `answer` says the same as `gold`, and the method that decided.

    Raises:
        NotDecided: it would take too much to know.
    """
    if answer.strip() == gold.strip():
        return True, "exact"
    if len(answer) > MAX_ANSWER or len(gold) > MAX_ANSWER:
        return False, "text"
    left, right = _without_approximation(clean(answer)), _without_approximation(clean(gold))
    if left == right:
        return bool(left), "exact"
    if not left or not right:
        return False, "text"
    first, second = rational(left), rational(right)
    if first is not None and second is not None:
        return first == second, "numeric"
    comparison = Comparison(percent_is_unit)
    graded = comparison.shapes(read(words.canonical(left)), read(words.canonical(right)))
    if not graded[0] and (first is None) != (second is None):
        # "100, 121, 144" against "100,121,144": three and more groups may be a list after all.
        lists = [read(_without_approximation(clean(text, join=False))) for text in (answer, gold)]
        if all(shape.kind == "list" and len(shape.parts) > 2 for shape in lists):
            return comparison.shapes(*lists)
    return graded


def _without_approximation(text: str) -> str:
    exact, mark, _rest = text.partition("\\approx")
    if not mark:
        return text
    if is_name(exact.strip()):
        return text.replace("\\approx", "=")
    return exact.strip() if exact.strip() and not exact.strip().endswith("=") else text.replace("\\approx", "").strip()


class Comparison:
    """One comparison's settings; its methods take answer first and gold second."""

    def __init__(self, percent_is_unit: bool) -> None:
        self.percent_is_unit = percent_is_unit

    def shapes(self, answer: Shape, gold: Shape) -> Graded:
        """Compare two shapes of any kind."""
        if answer.kind == "leaf" and gold.kind == "leaf":
            return self.leaves(answer.text, gold.text)
        if "relation" in (answer.kind, gold.kind):
            return self._relations(answer, gold)
        if "list" in (answer.kind, gold.kind) or "set" in (answer.kind, gold.kind):
            return self._collections(answer, gold)
        if answer.kind != gold.kind:
            return False, _method(gold)
        if gold.kind == "union":
            return self._unordered(answer.parts, gold.parts), "interval"
        if _brackets(answer) != _brackets(gold) or len(answer.parts) != len(gold.parts):
            return False, _method(gold)
        pairs = zip(answer.parts, gold.parts, strict=True)
        return all(self.shapes(first, second)[0] for first, second in pairs), _method(gold)

    def leaves(self, answer: str, gold: str) -> Graded:
        """Compare two single expressions, quantities or words."""
        if answer == gold:
            return True, "exact"
        special = _special(answer, gold)
        if special is not None:
            return special
        first, second = quantity(answer), quantity(gold)
        if first.unit is not None or second.unit is not None or first.scale != second.scale:
            return self._quantities(first, second)
        numbers = _number(answer), _number(gold)
        if (words.is_word(answer) or words.is_word(gold)) and None in numbers:
            return words.same(answer, gold), "text"
        return _values(answer, gold)

    def _quantities(self, answer: Quantity, gold: Quantity) -> Graded:
        units = (answer.unit, gold.unit)
        if PERCENT in units and answer.unit != gold.unit:
            if answer.unit is not None and gold.unit is not None:
                return False, "numeric"
            if self.percent_is_unit and _values(answer.value, gold.value)[0]:
                return True, "numeric"
            percent, plain = (answer, gold) if answer.unit == PERCENT else (gold, answer)
            return _values(f"\\frac{{{percent.value}}}{{100}}", _scaled(plain))
        if units in ((DEGREE, RADIAN), (RADIAN, DEGREE), (DEGREE, None), (None, DEGREE)):
            degrees, other = (answer, gold) if answer.unit == DEGREE else (gold, answer)
            if other.unit == RADIAN or "\\pi" in other.value:
                return _values(f"({degrees.value})\\cdot\\frac{{\\pi}}{{180}}", other.value)
        if answer.unit is None or gold.unit is None or answer.unit == gold.unit:
            return _values(_scaled(answer), _scaled(gold))
        if (answer.unit.dimension, answer.unit.power) != (gold.unit.dimension, gold.unit.power):
            return False, "numeric"
        first, second = rational(answer.value), rational(gold.value)
        if first is None or second is None:
            return False, "numeric"
        left = first * answer.scale * answer.unit.factor
        return left == second * gold.scale * gold.unit.factor, "numeric"

    def _collections(self, answer: Shape, gold: Shape) -> Graded:
        if not {answer.kind, gold.kind} <= {"list", "set"}:
            return False, "set"
        if "and" in answer.marks + gold.marks and answer.marks != gold.marks and _has_inequality(answer, gold):
            return False, "set"
        first, second = _without_shared_name(answer), _without_shared_name(gold)
        if first[0] and second[0] and first[0] != second[0]:
            return False, "set"
        left, right = first[1], second[1]
        if answer.kind == "set" or gold.kind == "set":
            left, right = self._distinct(left), self._distinct(right)
        return self._unordered(left, right), "set"

    def _distinct(self, parts: tuple[Shape, ...]) -> tuple[Shape, ...]:
        kept: list[Shape] = []
        for part in parts:
            if not any(self.shapes(part, other)[0] for other in kept):
                kept.append(part)
        return tuple(kept)

    def _unordered(self, answer: tuple[Shape, ...], gold: tuple[Shape, ...]) -> bool:
        """Whether the parts can be paired off; each part of one meets one part of the other."""
        if len(answer) != len(gold):
            return False
        left = list(answer)
        for wanted in gold:
            match = next((part for part in left if self.shapes(part, wanted)[0]), None)
            if match is None:
                return False
            left.remove(match)
        return True

    def _relations(self, answer: Shape, gold: Shape) -> Graded:
        both = answer.kind == gold.kind
        if both or (
            {answer.kind, gold.kind} <= {"relation", "tuple", "union"} and "=" not in answer.marks + gold.marks
        ):
            return relations_equal(answer, gold, self.shapes)
        plain, relation = (gold, answer) if answer.kind == "relation" else (answer, gold)
        value = value_of_assignment(relation, needs_constant=relation is gold)
        if value is None:
            return False, "symbolic"
        return self.shapes(value, plain) if relation is answer else self.shapes(plain, value)


def _scaled(found: Quantity) -> str:
    return found.value if found.scale == 1 else f"({found.value})\\cdot {found.scale}"


def _values(answer: str, gold: str) -> Graded:
    """Compare two expressions without units."""
    first, second = _number(answer), _number(gold)
    if first is not None and second is not None:
        return first == second, "numeric"
    return expression.same(answer, gold) or (False, "text")


def _number(text: str) -> Fraction | int | None:
    found = rational(text)
    return found if found is not None else words.number(text)


def _special(answer: str, gold: str) -> Graded | None:
    """Number bases, times and ratios, whose notation is their meaning; None for everything else."""
    answer, gold = words.plain(answer), words.plain(gold)
    bases = _BASE.fullmatch(answer), _BASE.fullmatch(gold)
    if any(found and found.group(1)[0].isdigit() for found in bases):
        return bool(bases[0] and bases[1] and _base(bases[0]) == _base(bases[1])), "text"
    times = _TIME.fullmatch(answer), _TIME.fullmatch(gold)
    if all(times) or any(found and found.group(3) for found in times):
        return bool(times[0] and times[1] and _time(times[0]) == _time(times[1])), "text"
    if _RATIO.fullmatch(answer) or _RATIO.fullmatch(gold):
        return _ratios(answer, gold), "numeric"
    return None


def _base(match: re.Match[str]) -> tuple[str, int | str]:
    base = match.group(2)
    return match.group(1).lstrip("0").upper(), int(base) if base.isdigit() else words.number(base) or base


def _time(match: re.Match[str]) -> tuple[str, ...]:
    return tuple((part or "").lower() for part in match.groups())


def _ratios(answer: str, gold: str) -> bool:
    def parts(text: str) -> list[Fraction] | None:
        pieces = [rational(piece) for piece in text.split(":")]
        found = [piece for piece in pieces if piece is not None]
        if len(found) == 1 and ":" not in text:
            found = [found[0], Fraction(1)]
        return found if len(found) == max(2, len(pieces)) and all(found) else None

    left, right = parts(answer), parts(gold)
    if left is None or right is None or len(left) != len(right):
        return False
    return all(first * right[0] == second * left[0] for first, second in zip(left, right, strict=True))


def _brackets(shape: Shape) -> tuple[str, ...]:
    """A tuple's brackets, an infinite end counted as open."""
    if shape.kind != "tuple" or len(shape.parts) != 2:
        return shape.marks
    opening, closing = shape.marks
    infinite = [part.text in _INFINITE for part in shape.parts]
    return ("(" if infinite[0] and opening == "[" else opening), (")" if infinite[1] and closing == "]" else closing)


def _method(shape: Shape) -> str:
    return {"matrix": "matrix", "union": "interval", "tuple": "interval", "relation": "symbolic"}.get(shape.kind, "set")


def _has_inequality(*shapes: Shape) -> bool:
    return any(set(part.marks) & {"<", ">", "\\le", "\\ge"} for shape in shapes for part in shape.parts)


def _without_shared_name(shape: Shape) -> tuple[str, tuple[Shape, ...]]:
    """`x = 1, x = 2` and `x = 1, 2` as (x, 1 and 2); other lists as they are, without a name."""
    names = {p.parts[0].text for p in shape.parts if p.kind == "relation" and p.marks == ("=",)}
    if len(names) != 1 or any(part.kind == "relation" and part.marks != ("=",) for part in shape.parts):
        return "", shape.parts
    values = tuple(part.parts[-1] if part.kind == "relation" else part for part in shape.parts)
    if value_of_assignment(shape.parts[0], needs_constant=False) is None:
        return "", shape.parts
    return names.pop(), values
