"""Equations and inequalities: same solutions through a constant factor, or through the interval they name."""

import re
from collections.abc import Callable

from expo_ray.verifier.math import expression
from expo_ray.verifier.math.shape import Shape

Graded = tuple[bool, str]
_FLIP = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}
_GREEK = r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|sigma|phi|omega|rho|tau|epsilon|Delta|Omega)"
# A product such as xy names nothing: xy = 6 is not an answer 6.
_NAME = re.compile(
    rf"(?:[A-Za-z]|[A-Z]{{2,4}}|[A-Z]?[a-z]{{4,}}|{_GREEK}|\\text\{{[^{{}}]*\}})(?:_\{{[^{{}}]*\}})?'*(?:\([A-Za-z](?:,[A-Za-z])*\))?"
    r"|[fghPE](?:\^\{-1\})?\([^=()]*\)|m?\\angle ?[A-Z]+|\\overline\{[A-Z]+\}|\|[A-Z]{2}\||\\frac\{d[a-z]\}\{d[a-z]\}"
    r"|\([A-Za-z](?:,[A-Za-z])+\)"
)
_CALL = re.compile(r"[A-Za-z]+(?:\^\{-1\})?\([a-z](?:,[a-z])*\)")


def is_name(text: str) -> bool:
    r"""Whether a side of an equation only names the value: `x`, `f(x)`, `a_{1}`, `\theta`, `\text{Area}`."""
    return bool(_NAME.fullmatch(text)) and text not in ("e", "i", "\\pi", "\\infty")


def value_of_assignment(relation: Shape, needs_constant: bool) -> Shape | None:
    """The value that `x = 5`, `f(x) = 2x` or `x = 2 + 3 = 5` gives to its name; None for other relations.

    needs_constant: only values without unknowns count unless the name is a call: a gold `y = 2x + 3` is a line.
    """
    if relation.kind != "relation":
        return None
    if relation.marks == ("\\in",) and is_name(relation.parts[0].text):
        return relation.parts[1]
    if set(relation.marks) != {"="}:
        return None
    sides = list(relation.parts)
    if is_name(sides[-1].text) and not is_name(sides[0].text):
        sides.reverse()
    if is_name(sides[0].text):
        sides = sides[1:]
        named = relation.parts[0].text
    else:
        named = ""
    value = sides[-1]
    constants = [expression.parse(side.text) if side.kind == "leaf" else None for side in sides]
    numbers = [found for found in constants if found is not None and not found.free_symbols]
    if not named and len(numbers) != len(sides):
        return None
    if any(not expression.equal(found, numbers[-1]) for found in numbers[:-1]):
        return None
    if needs_constant and not _CALL.fullmatch(named):
        found = constants[-1]
        if found is not None and found.free_symbols:
            return None
    return value


def relations_equal(answer: Shape, gold: Shape, shapes: Callable[[Shape, Shape], Graded]) -> Graded:
    """Compare two relations, or a relation with an interval. `shapes` compares the parts."""
    left, right = _as_interval(answer), _as_interval(gold)
    if left is not None and right is not None:
        if left[0] and right[0] and left[0] != right[0]:
            return False, "interval"
        return shapes(left[1], right[1])[0], "interval"
    if answer.kind != "relation" or gold.kind != "relation":
        return False, "interval"
    first, second = _assignment(answer), _assignment(gold)
    if first and second and first[0] == second[0]:
        return shapes(first[1], second[1])
    if answer.marks == gold.marks and len(answer.parts) == len(gold.parts):
        pairs = list(zip(answer.parts, gold.parts, strict=True))
        if all(shapes(one, other)[0] for one, other in pairs):
            return True, "symbolic"
    flipped = tuple(_FLIP.get(mark, "") for mark in reversed(answer.marks))
    if flipped == gold.marks and len(answer.parts) > 2:
        pairs = list(zip(reversed(answer.parts), gold.parts, strict=True))
        if all(shapes(one, other)[0] for one, other in pairs):
            return True, "symbolic"
    return _proportional(answer, gold), "symbolic"


def _assignment(relation: Shape) -> tuple[str, Shape] | None:
    value = value_of_assignment(relation, needs_constant=False)
    if value is None:
        return None
    ends = relation.parts[0].text, relation.parts[-1].text
    name = next((end for end in ends if is_name(end)), None)
    return None if name is None else (name, value)


def _proportional(answer: Shape, gold: Shape) -> bool:
    """Whether left minus right of one is a constant times that of the other, with the sign that the relation needs."""
    if len(answer.parts) != 2 or len(gold.parts) != 2:
        return False
    sides = [expression.parse(part.text) for part in (*answer.parts, *gold.parts)]
    known = [side for side in sides if side is not None]
    if len(known) < 4:
        return False
    factor = expression.ratio(known[0] - known[1], known[2] - known[3])
    if factor is None or not factor.is_real:
        return False
    mark = answer.marks[0]
    if mark not in _FLIP:
        return False
    return gold.marks[0] == (mark if factor > 0 else _FLIP[mark])


def without_point(point: Shape) -> Shape:
    """The reals without one point, as a union of two intervals."""
    ends = Shape("leaf", "-\\infty"), Shape("leaf", "\\infty")
    parts = (Shape("tuple", "", (ends[0], point), ("(", ")")), Shape("tuple", "", (point, ends[1]), ("(", ")")))
    return Shape("union", "", parts)


def _as_interval(shape: Shape) -> tuple[str, Shape] | None:
    """(unknown, interval) of `x > 3`, `1 < x <= 2`, `x \\in [1,2)`; ("", shape) of an interval or union."""
    if shape.kind == "union" or (shape.kind == "tuple" and len(shape.parts) == 2):
        return "", shape
    if shape.kind != "relation":
        return None
    if shape.marks == ("\\in",) and is_name(shape.parts[0].text):
        inner = _as_interval(shape.parts[1])
        return None if inner is None else (shape.parts[0].text, inner[1])
    parts, marks = shape.parts, shape.marks
    if marks == ("\\ne",) and is_name(parts[0].text):
        return parts[0].text, without_point(parts[1])
    if set(marks) & {">", "\\ge"} and not set(marks) & {"<", "\\le"}:
        parts, marks = tuple(reversed(parts)), tuple(_FLIP.get(mark, "") for mark in reversed(marks))
    if not set(marks) <= {"<", "\\le"}:
        return None
    low, high = Shape("leaf", "-\\infty"), Shape("leaf", "\\infty")
    opening, closing = "(", ")"
    if len(parts) == 3 and is_name(parts[1].text):
        name, low, high = parts[1].text, parts[0], parts[2]
        opening, closing = ("(" if marks[0] == "<" else "["), (")" if marks[1] == "<" else "]")
    elif len(parts) == 2 and is_name(parts[0].text) and not is_name(parts[1].text):
        name, high, closing = parts[0].text, parts[1], ")" if marks[0] == "<" else "]"
    elif len(parts) == 2 and is_name(parts[1].text) and not is_name(parts[0].text):
        name, low, opening = parts[1].text, parts[0], "(" if marks[0] == "<" else "["
    else:
        return None
    return name, Shape("tuple", shape.text, (low, high), (opening, closing))
