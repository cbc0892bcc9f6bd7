r"""Whether an answer is a gold answer in another notation. Doubt is decided against the answer.

The cheapest test comes first: the same text, then the same exact number, then one comparison per kind of answer
(docs/verifier.md), down to the values of expressions.
"""

import re
from fractions import Fraction

from expo_ray.verifier.math import value, words
from expo_ray.verifier.math.clean import clean
from expo_ray.verifier.math.relation import (
    FLIP,
    assignment,
    is_name,
    is_solved,
    proportional,
    reals,
    same_reals,
    value_of,
)
from expo_ray.verifier.math.shape import Shape, read
from expo_ray.verifier.math.syntax import Node, parse, parse_all, symbols
from expo_ray.verifier.math.units import DEGREE, PERCENT, RADIAN, Quantity, quantity
from expo_ray.verifier.math.words import MAX_ANSWER, NotDecided

Graded = tuple[bool, str]

_BASE = re.compile(
    r"([+-]?)[({]?([0-9A-Za-z.]+?)[)}]? ?"
    r"(?:_\{\(?(?:base )?([0-9]+|[a-z]{3,})\)?\}|,? ?\(?base[ -]?([0-9]+|[a-z]{3,})\)?)"
)
_TIME = re.compile(r"0?([0-9]{1,2})(?::([0-9]{2}(?::[0-9]{2})?))?(?: ?([ap])\.? ?m)?", re.IGNORECASE)
_RATIO = re.compile(r"[^:]+(?::[^:]+)+")
_INFINITE = ("\\infty", "+\\infty", "-\\infty")
_QUESTION_MATH = re.compile(r"\$\$[^$]{1,2000}\$\$|\$[^$]{1,2000}\$|\\\(.{1,2000}?\\\)|\\\[.{1,2000}?\\\]", re.DOTALL)
_LETTERS = re.compile(r"[A-Za-z](?: ?[A-Za-z])+")
_METHODS = {"matrix": "matrix", "union": "interval", "tuple": "interval", "relation": "symbolic"}


def warm() -> None:
    """Read and compare some of everything, so that forked processes find tables and mpmath's constants filled."""
    for text in [r"\frac{x+1}{2}\sqrt{3}-\pi", r"\sin(x)\cos^{2}x", r"\log_{2}8!", r"5\text{cm}", r"x>3", r"(1,e^{2})"]:
        equal(text, text + "+1")


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
    first, second = value.rational(left), value.rational(right)
    if first is not None and second is not None:
        return first == second, "numeric"
    comparison = Comparison(percent_is_unit)
    graded = comparison.shapes(read(left), read(right))
    if not graded[0] and (first is None) != (second is None):
        # "100,121,144" and "-1,250" may be lists after all.
        lists = [read(_without_approximation(clean(text, join=False))) for text in (answer, gold)]
        if all(shape.kind == "list" and len(shape.parts) > 1 for shape in lists):
            return comparison.shapes(*lists)
    return graded


def _without_approximation(text: str) -> str:
    r"""The exact value of `\sqrt{2} \approx 1.41`; nothing where what follows is no rounded value of it."""
    exact, mark, rest = (part.strip() for part in text.partition("\\approx"))
    if not mark or is_name(exact):
        return text.replace("\\approx", "=")
    if not exact or exact.endswith("="):
        return text.replace("\\approx", "").strip()
    tree, rounded = parse(quantity(exact.rpartition("=")[2]).value), value.rational(quantity(rest).value)
    at = None if tree is None or symbols(tree) else value.approximate(tree)
    near = at is not None and rounded is not None and abs(at - rounded) <= 0.05 * abs(at)
    return exact if near else ""


def is_readable(text: str) -> bool:
    """Whether an answer can be compared at all: each part of it an expression, a quantity or a few words."""
    try:
        return _readable(read(_without_approximation(clean(text))))
    except NotDecided:
        return False


def _readable(shape: Shape) -> bool:
    if shape.kind != "leaf":
        return all(map(_readable, shape.parts))
    inner = quantity(shape.text, any_plural=True).value
    if shape.text in ("\\emptyset", *_INFINITE) or parse(inner) is not None:
        return True
    plain = words.plain(shape.text)
    if any(notation.fullmatch(plain) for notation in (_BASE, _TIME, _RATIO)):
        return True
    return len(plain.split()) <= 6 and re.fullmatch(r"[\w :;,.'()/+-]*[^\W_][\w :;,.'()/+-]*", plain) is not None


def is_simplified(answer: str, gold: str, question: str) -> bool:
    """Whether an answer is carried out: a number where the gold is one, and no formula copied from the question."""
    said, wanted = (_stated_value(text) for text in (answer, gold))
    if _number(wanted) is not None:
        return _number(said) is not None
    asked = [_without_spaces(clean(match.group())) for match in _QUESTION_MATH.finditer(question)]
    copied = any(_without_spaces(said) in formula for formula in asked)
    return not copied or any(_without_spaces(wanted) in formula for formula in asked)


def _stated_value(text: str) -> str:
    """The cleaned value without its name and unit."""
    shape = read(_without_approximation(clean(text)))
    found = value_of(shape, gold=False) if shape.kind == "relation" else None
    return quantity((found or shape).text, any_plural=True).value


def _without_spaces(text: str) -> str:
    return re.sub(r"\s|\\cdot", "", text)


class Comparison:
    """One comparison's settings; its methods take answer first and gold second."""

    def __init__(self, percent_is_unit: bool) -> None:
        self.percent_is_unit = percent_is_unit

    def shapes(self, answer: Shape, gold: Shape) -> Graded:
        """Compare two shapes of any kind."""
        labelled = self._labelled(answer, gold)
        if labelled is not None:
            return labelled
        if answer.kind == "leaf" and gold.kind == "leaf":
            return self.leaves(answer.text, gold.text)
        kinds, unequal = {answer.kind, gold.kind}, _has_inequality(answer, gold)
        if "union" in kinds or unequal or ("\\in",) in (answer.marks, gold.marks):
            first, second = reals(answer), reals(gold)
            if first is not None and second is not None:
                return same_reals(first, second), "interval"
        if "list" in kinds and not unequal:
            named = self._named(answer, gold)
            if named is not None:
                return named, "set"
        if "relation" in kinds:
            return self._relations(answer, gold)
        if kinds & {"list", "set"}:
            return self._collections(answer, gold)
        if kinds == {"matrix", "tuple"}:
            matrix, vector = (answer, gold) if answer.kind == "matrix" else (gold, answer)
            if matrix.marks != ("1",) or vector.marks != ("(", ")"):
                return False, "matrix"
        elif answer.kind != gold.kind or answer.marks != gold.marks:
            return False, _METHODS.get(gold.kind, "set")
        if gold.kind == "union" and set(gold.marks) in ({"\\cup"}, {"\\cap"}):
            return self._unordered(answer.parts, gold.parts), "interval"
        return self._in_order(answer.parts, gold.parts), _METHODS.get(gold.kind, "set")

    def leaves(self, answer: str, gold: str) -> Graded:
        """Compare two single expressions, quantities or words."""
        if answer == gold:
            return True, "exact"
        special = _special(answer, gold)
        if special is not None:
            return special
        if gold in _INFINITE or answer in _INFINITE:
            return answer.lstrip("+") == gold.lstrip("+"), "exact"
        first, second = quantity(answer), quantity(gold, any_plural=True)
        # 18m is a product, but where the other side says 18 meters it is that.
        spaced = [quantity(re.sub(r"(?<=[0-9])(?=[A-Za-z]{1,3}$)", " ", text)) for text in (answer, gold)]
        if (first.unit is None) != (second.unit is None) and spaced[0].unit == spaced[1].unit:
            first, second = spaced
        if (first.unit, first.value) != (None, answer) or (second.unit, second.value) != (None, gold):
            return self._quantities(first, second)
        if _LETTERS.fullmatch(answer) and _LETTERS.fullmatch(gold):
            return _same_letters(answer, gold), "symbolic"
        if ("\\degree" in answer) != ("\\degree" in gold) and not re.search(
            r"\\(?:pi|sin|cos|tan|sec|csc|cot|cis)", answer + gold
        ):
            return _values(answer.replace("\\degree", ""), gold.replace("\\degree", ""))
        return _values(answer, gold)

    def _labelled(self, answer: Shape, gold: Shape) -> Graded | None:
        """Choices with their text: the letter or the text of a gold is enough, both must fit where both are given."""
        labels = first, second = words.label(answer.text), words.label(gold.text)
        if labels == (None, None):
            return None
        letters = [
            words.plain(shape.text).strip("().") if label is None else label[0]
            for label, shape in zip(labels, (answer, gold), strict=True)
        ]
        if None in labels and letters[labels.index(None)] in "ABCDEFGHIJ":
            return letters[0] == letters[1], "text"
        graded = self.shapes(read(first[1]) if first else answer, read(second[1]) if second else gold)
        return graded if None in labels else (graded[0] and letters[0] == letters[1], "text")

    def _quantities(self, answer: Quantity, gold: Quantity) -> Graded:
        units = (answer.unit, gold.unit)
        if answer.unit == gold.unit:
            return _values(answer.value, gold.value)
        if PERCENT in units:
            if None not in units:
                return False, "numeric"
            if self.percent_is_unit and _values(answer.value, gold.value)[0]:
                return True, "numeric"
            percent, plain = (answer, gold) if answer.unit == PERCENT else (gold, answer)
            return _values(f"\\frac{{{percent.value}}}{{100}}", plain.value)
        if DEGREE in units and set(units) <= {DEGREE, RADIAN, None}:
            degrees, other = (answer, gold) if answer.unit == DEGREE else (gold, answer)
            if other.unit == RADIAN or "\\pi" in other.value:
                return _values(f"({degrees.value})\\cdot\\frac{{\\pi}}{{180}}", other.value)
            return _values(answer.value.replace("\\degree", ""), gold.value.replace("\\degree", ""))
        if answer.unit is None or gold.unit is None:
            return _values(answer.value, gold.value)
        if (answer.unit.dimension, answer.unit.power) != (gold.unit.dimension, gold.unit.power):
            return False, "numeric"
        return _values(f"({answer.value})\\cdot({answer.unit.factor})", f"({gold.value})\\cdot({gold.unit.factor})")

    def _named(self, answer: Shape, gold: Shape) -> bool | None:
        """Lists of `x = 4, y = 9` with different names, also against the tuple (4, 9) in the names' order."""
        first, second = _assignments(answer), _assignments(gold)
        if first is None and second is None:
            return None
        if first is not None and answer.marks == ("or",) and len({name.partition("_")[0] for name in first}) > 1:
            return False  # x = 2 or y = 3 leaves open what x is
        if first is not None and second is not None:
            return first.keys() == second.keys() and all(self.shapes(first[name], second[name])[0] for name in first)
        values, other = (first, gold) if first is not None else (second, answer)
        if other.kind != "tuple" or other.marks != ("(", ")") or values is None:
            return None
        pairs = zip((values[name] for name in sorted(values)), other.parts, strict=False)
        same = all(self.shapes(*(pair if values is first else pair[::-1]))[0] for pair in pairs)
        return same and len(values) == len(other.parts)

    def _collections(self, answer: Shape, gold: Shape) -> Graded:
        if not {answer.kind, gold.kind} <= {"list", "set"}:
            return False, "set"
        joins = {"and" if shape.marks == ("and",) else "or" for shape in (answer, gold) if shape.marks != (",",)}
        if len(joins) > 1 and (_has_inequality(answer, gold) or _has_words(answer, gold)):
            return False, "set"
        first, second = _without_shared_name(answer), _without_shared_name(gold)
        if first[0] and second[0] and first[0] != second[0]:
            return False, "set"
        left, right = first[1], second[1]
        if "set" in (answer.kind, gold.kind):
            left, right = self._distinct(left), self._distinct(right)
        return self._unordered(left, right), "set"

    def _distinct(self, parts: tuple[Shape, ...]) -> tuple[Shape, ...]:
        same = [any(self.shapes(part, other)[0] for other in parts[:at]) for at, part in enumerate(parts)]
        return tuple(part for part, again in zip(parts, same, strict=True) if not again)

    def _in_order(self, answer: tuple[Shape, ...], gold: tuple[Shape, ...]) -> bool:
        pairs = zip(answer, gold, strict=False)
        return len(answer) == len(gold) and all(self.shapes(first, second)[0] for first, second in pairs)

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
        if answer.kind != gold.kind:
            is_gold = gold.kind == "relation"
            found = value_of(gold if is_gold else answer, is_gold)
            if found is None:
                return False, "symbolic"
            return self.shapes(answer, found) if is_gold else self.shapes(found, gold)
        first, second = assignment(answer), assignment(gold)
        if first and second and first[0] and first[0] == second[0]:
            return self.shapes(first[1], second[1])
        if answer.marks == gold.marks and self._in_order(answer.parts, gold.parts):
            return True, "symbolic"
        flipped = tuple(FLIP.get(mark, "") for mark in reversed(answer.marks))
        if flipped == gold.marks and len(answer.parts) > 2 and self._in_order(answer.parts[::-1], gold.parts):
            return True, "symbolic"
        if first and second and not first[0] and is_solved(gold):
            return False, "symbolic"
        return proportional(answer, gold), "symbolic"


def _values(answer: str, gold: str) -> Graded:
    """Compare two texts without units: numbers, expressions, or words."""
    first, second = _number(answer), _number(gold)
    if first is not None and second is not None:
        return first == second, "numeric"
    left, right = parse(answer), parse(gold)
    if left is not None and right is not None:
        return value.equal(left, right), "symbolic" if symbols(left) | symbols(right) else "numeric"
    if {first, second} != {None}:
        return False, "text"
    return words.same(answer, gold), "text"


def _number(text: str) -> Fraction | None:
    found = value.rational(text)
    return found if found is not None else words.number(text)


def _same_letters(answer: str, gold: str) -> bool:
    """lw is wl, a product; AB is not BA, two points; abc is not acb, which may be a word."""
    first, second = answer.replace(" ", ""), gold.replace(" ", "")
    if len(first) == 2 and first.islower() and "o" not in first:
        return sorted(first) == sorted(second)
    return first == second or (len(first) == len(second) and words.same(answer, gold))


def _special(answer: str, gold: str) -> Graded | None:
    """Number bases, times and ratios, whose notation is their meaning; None for everything else."""
    answer, gold = words.plain(answer), words.plain(gold)
    bases = _BASE.fullmatch(answer), _BASE.fullmatch(gold)
    if any(found and found.group(2)[0].isdigit() for found in bases):
        pair = [
            _base(found) if found else (text.lstrip("0"), 10) for found, text in zip(bases, (answer, gold), strict=True)
        ]
        return pair[0] == pair[1], "text"
    times = _TIME.fullmatch(answer), _TIME.fullmatch(gold)
    if any(found and found.group(3) for found in times) or all(found and found.group(2) for found in times):
        return bool(times[0] and times[1] and _time(times[0]) == _time(times[1])), "text"
    if _RATIO.fullmatch(gold):
        answer = re.sub(r"^([0-9.]+) ?to ?([0-9.]+)$", r"\1:\2", answer)
    if _RATIO.fullmatch(answer) or _RATIO.fullmatch(gold):
        return _ratios(answer, gold), "numeric"
    return None


def _base(match: re.Match[str]) -> tuple[str, Fraction | str]:
    base = match.group(3) or match.group(4)
    return match.group(1).strip("+") + match.group(2).lstrip("0").upper(), _number(base) or base


def _time(match: re.Match[str]) -> tuple[str, ...]:
    hour, minutes, half = match.groups()
    afternoon = half is None and int(hour) > 12
    return str(int(hour) - 12 * afternoon), minutes or "00", "p" if afternoon else (half or "").lower()


def _ratios(answer: str, gold: str) -> bool:
    left, right = (parse_all(text.split(":")) for text in (answer, gold))
    if left is None or right is None:
        return False
    one: Node = ("num", Fraction(1))
    left, right = (side if len(side) > 1 else [*side, one] for side in (left, right))
    if len(left) != len(right) or any(value.equal(tree, ("num", Fraction(0))) for tree in (*left, *right)):
        return False
    pairs = zip(left, right, strict=True)
    return all(value.equal(("*", first, right[0]), ("*", second, left[0])) for first, second in pairs)


def _has_inequality(*shapes: Shape) -> bool:
    parts = [part for shape in shapes for part in (shape, *shape.parts) if part.kind == "relation"]
    return any(set(part.marks) - {"=", "\\in", "\\equiv"} for part in parts)


def _has_words(*shapes: Shape) -> bool:
    leaves = [part.text for shape in shapes for part in shape.parts if part.kind == "leaf"]
    return any(text.isalpha() or parse(text) is None for text in leaves)


def _assignments(shape: Shape) -> dict[str, Shape] | None:
    """The values of a list of equations with different names; None for other shapes."""
    found = [assignment(part) if part.kind == "relation" else None for part in shape.parts]
    known = {one[0]: one[1] for one in found if one is not None and one[0]}
    return known if shape.kind == "list" and len(known) == len(shape.parts) > 1 else None


def _without_shared_name(shape: Shape) -> tuple[str, tuple[Shape, ...]]:
    """`x = 1, x = 2` and `x = 1, 2` as (x, 1 and 2); other lists as they are, without a name."""
    relations = [part for part in shape.parts if part.kind == "relation"]
    # x_1 = 2, x_2 = 3 are two values of x.
    names = {part.parts[0].text.partition("_")[0] for part in relations}
    equations = all(part.marks == ("=",) for part in relations)
    if len(names) != 1 or not equations or assignment(relations[0]) is None:
        return "", shape.parts
    return names.pop(), tuple(part.parts[-1] if part.kind == "relation" else part for part in shape.parts)
