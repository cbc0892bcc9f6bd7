"""Equations and inequalities: what names a value, equal solutions, and sets of real numbers in one normal form."""

import re
from dataclasses import dataclass
from typing import Any

from expo_ray.verifier.math import value
from expo_ray.verifier.math.shape import Shape
from expo_ray.verifier.math.syntax import Node, parse, symbols

FLIP = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}
_GREEK = r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|sigma|phi|omega|rho|tau|epsilon|Delta|Omega)"
# A product such as xy names nothing: xy = 6 is not an answer 6.
_ONE_NAME = rf"(?:[A-Za-z]|[A-Z]{{2,4}}|[A-Z]?[a-z]{{4,}}|{_GREEK}|\\(?:text|vec)\{{[^{{}}]*\}})(?:_\{{[^{{}}]*\}})?'*"
_NAME = re.compile(
    rf"{_ONE_NAME}(?::{_ONE_NAME})+|{_ONE_NAME}(?:\([A-Za-z](?:,[A-Za-z])*\))?|[A-Za-z](?:\+[A-Za-z])+|[fghPE](?:\^\{{-1\}})?\([^=()]*\)"
    r"|(?:m|\\text\{m\})?\\(?:angle|triangle|overline|det) ?\{?[A-Z]+\}?"
    r"|\\?\|(?:[A-Z]{2}|[a-z]|\\vec\{[a-z]\})\\?\||\[[A-Z]{3,}\]"
    r"|\\frac\{[A-Z]{2}\}\{[A-Z]{2}\}|\\frac\{d[a-z]\}\{d[a-z]\}|\([A-Za-z](?:,[A-Za-z])+\)"
    rf"|\\(?:sin|cos|tan|sec|csc|cot) ?(?:[A-Za-z]|{_GREEK}|\\angle ?[A-Z]+)|\\(?:lim|max|min)_\{{.*"
)
_CALL = re.compile(
    r"[A-Za-z]+(?:\^\{-1\})?\([a-z](?:,[a-z])*\)|[A-Za-z]_\{[^{}]*\}|\\vec\{[a-z]\}|\\frac\{[A-Z]{2}\}.*"
)
_WORDS = re.compile(r"\\text\{ ?([A-Za-z][A-Za-z ]*)\}(?: ?(?:\\(?:triangle|angle|odot) ?)?[A-Z]{0,4})?")
_NEGATION = re.compile(
    r"\b(?:not?|never|neither|nor|cannot|isn|false|wrong|incorrect|except|unlike|or|maybe)\b", re.IGNORECASE
)


def is_name(text: str) -> bool:
    r"""Whether a side of an equation only names the value: `x`, `f(x)`, `a_{1}`, `\text{Area}`, `\cos A`."""
    if text in ("e", "i", "\\pi", "\\infty") or any(map(_NEGATION.search, re.findall(r"\\text\{([^{}]*)", text))):
        return False
    return bool(_NAME.fullmatch(text) or _WORDS.fullmatch(text))


def assignment(relation: Shape) -> tuple[str, Shape] | None:
    """(name, value) of `x = 5`, `5 = x`, `f(x) = 2x`, `x = 2 + 3 = 5`; the name is "" in `2 + 3 = 5`; else None.

    All values of a chain must be equal.
    """
    if relation.kind != "relation":
        return None
    sides = list(relation.parts)
    if relation.marks in (("\\in",), ("\\equiv",)) and is_name(sides[0].text):
        return sides[0].text, sides[1]
    if set(relation.marks) != {"="}:
        return None
    if is_name(sides[-1].text) and not is_name(sides[0].text):
        sides.reverse()
    name = sides.pop(0).text if is_name(sides[0].text) else ""
    if len(sides) > 1:
        trees = [parse(side.text) for side in sides]
        known = [tree for tree in trees if tree is not None]
        if len(known) < len(sides) or not all(value.equal(tree, known[-1]) for tree in known[:-1]):
            return _percent_chain(sides, name)
        if not name and any(symbols(tree) for tree in known):
            return None
    return name, sides[-1]


def _percent_chain(sides: list[Shape], name: str) -> tuple[str, Shape] | None:
    r"""`\frac{2}{5} = 40\%`: both sides are one number."""
    trees = [parse(f"({side.text[:-2]})/100" if side.text.endswith("\\%") else side.text) for side in sides]
    known = [tree for tree in trees if tree is not None]
    if len(known) < len(sides) or any(symbols(tree) for tree in known):
        return None
    return (name, sides[-1]) if all(value.equal(tree, known[-1]) for tree in known[:-1]) else None


def value_of(relation: Shape, gold: bool) -> Shape | None:
    """The value that a relation gives to its name. Of a gold, unknowns count only behind a call: `y = 2x` is a line."""
    found = assignment(relation)
    if found is None or not gold or _CALL.fullmatch(found[0]) or relation.marks[0] == "\\in":
        return None if found is None else found[1]
    tree = parse(found[1].text)
    return None if tree is not None and symbols(tree) else found[1]


def is_solved(relation: Shape) -> bool:
    """Whether a relation states a value or a bound: a name on one side, a constant on the other."""
    ends = relation.parts[0].text, relation.parts[-1].text
    for name, other in (ends, ends[::-1]):
        tree = parse(other)
        if is_name(name) and (tree is None or not symbols(tree)):
            return True
    return len(relation.parts) == 3 and is_name(relation.parts[1].text)


def proportional(answer: Shape, gold: Shape) -> bool:
    """Whether left minus right of one is a constant times that of the other, with the sign that the relation needs."""
    if len(answer.parts) != 2 or len(gold.parts) != 2 or answer.marks[0] not in FLIP:
        return False
    if is_solved(gold) and not is_solved(answer):
        # The question itself is no answer: 2x + 3 = 17 does not say that x = 7.
        return False
    sides = [parse(part.text) for part in (*answer.parts, *gold.parts)]
    known = [side for side in sides if side is not None]
    if len(known) < 4:
        return False
    factor = value.ratio(("+", known[0], ("-", known[1])), ("+", known[2], ("-", known[3])))
    if factor is None:
        return False
    return gold.marks[0] == (answer.marks[0] if factor > 0 else FLIP[answer.marks[0]])


@dataclass(frozen=True, slots=True)
class _End:
    """An end of an interval: its value as a float for the order, as a tree for equality (None: infinite)."""

    at: float
    tree: Node | None
    closed: bool

    def same(self, other: "_End") -> bool:
        if self.tree is None or other.tree is None:
            return self.at == other.at
        return self.closed == other.closed and value.equal(self.tree, other.tree)


Reals = list[tuple[_End, _End]]
LOWEST, HIGHEST = _End(-float("inf"), None, False), _End(float("inf"), None, False)


def reals(shape: Shape) -> tuple[str, Reals] | None:
    """The set of real numbers that a shape describes, as (name of the unknown or "", intervals in order); else None.

    Intervals, unions, sets of numbers, inequalities, and inequalities joined by "and", "or" or a comma.
    """
    if shape.kind == "leaf" and shape.text in ("\\emptyset",):
        return "", []
    if shape.kind == "tuple" and len(shape.parts) == 2:
        ends = _end(shape.parts[0], shape.marks[0] == "["), _end(shape.parts[1], shape.marks[1] == "]")
        return None if ends[0] is None or ends[1] is None else ("", _merged([(ends[0], ends[1])]))
    if shape.kind == "set":
        points = [_end(part, True) for part in shape.parts]
        known = [point for point in points if point is not None]
        return ("", _merged([(point, point) for point in known])) if len(known) == len(points) else None
    if shape.kind in ("union", "list"):
        return _joined(shape)
    return _inequality(shape) if shape.kind == "relation" else None


def _joined(shape: Shape) -> tuple[str, Reals] | None:
    parts = list(shape.parts)
    if shape.kind == "list":
        if parts[0].kind != "relation" or set(parts[0].marks) <= {"="}:
            return None
        if parts[0].marks == ("\\ne",):
            # x \ne -1, 1 leaves out both.
            head = parts[0].parts[0]
            parts = [p if p.kind == "relation" else Shape("relation", p.text, (head, p), ("\\ne",)) for p in parts]
    found = [reals(part) for part in parts]
    known = [one for one in found if one is not None]
    if len(known) < len(found) or len({name for name, _ in known}) > 1:
        return None
    sets = [intervals for _, intervals in known]
    both = sets[0]
    for other in sets[1:]:
        both = [cut for one in both for two in other if (cut := _cut(one, two)) is not None]
    either = _merged([interval for one in sets for interval in one])
    unequal = any(part.marks == ("\\ne",) for part in parts)
    if shape.kind == "list" and (shape.marks == ("and",) or unequal or (shape.marks == (",",) and both)):
        return known[0][0], _merged(both)
    return known[0][0], either


def _inequality(shape: Shape) -> tuple[str, Reals] | None:
    parts, marks = shape.parts, shape.marks
    if marks == ("\\in",) and is_name(parts[0].text):
        inner = reals(parts[1])
        return None if inner is None else (parts[0].text, inner[1])
    if marks == ("\\ne",) and is_name(parts[0].text):
        end = _end(parts[1], False)
        return None if end is None else (parts[0].text, _merged([(LOWEST, end), (end, HIGHEST)]))
    if set(marks) & {">", "\\ge"} and not set(marks) & {"<", "\\le"}:
        parts, marks = tuple(reversed(parts)), tuple(FLIP.get(mark, "") for mark in reversed(marks))
    if not set(marks) <= {"<", "\\le"} or len(parts) > 3:
        return None
    middle = 1 if len(parts) == 3 else next((i for i in (0, 1) if _unknown(parts[i].text)), None)
    if middle is None or not _unknown(parts[middle].text):
        return None
    low = _end(parts[middle - 1], marks[middle - 1] == "\\le") if middle else LOWEST
    high = _end(parts[middle + 1], marks[middle] == "\\le") if middle + 1 < len(parts) else HIGHEST
    if low is None or high is None:
        return None
    name = parts[middle].text
    if not name.startswith("|"):
        return name, _merged([(low, high)])
    mirrored = (
        _End(-high.at, high.tree and ("-", high.tree), high.closed),
        _End(-low.at, low.tree and ("-", low.tree), low.closed),
    )
    return name.strip("|"), _merged([(mirrored[0], high)] if low is LOWEST else [mirrored, (low, high)])


def _unknown(text: str) -> bool:
    return is_name(text.strip("|")) and parse(text.strip("|")) is not None


def _end(part: Shape, closed: bool) -> _End | None:
    infinite = {"\\infty": HIGHEST, "+\\infty": HIGHEST, "-\\infty": LOWEST}.get(part.text)
    if infinite is not None:
        return infinite
    tree = parse(part.text) if part.kind == "leaf" else None
    at = None if tree is None or symbols(tree) else value.approximate(tree)
    return None if at is None else _End(at, tree, closed)


def _merged(intervals: Reals) -> Reals:
    """In order, without empty ones, joined where they touch."""
    kept = [
        one for one in intervals if one[0].at < one[1].at or (one[0].closed and one[1].closed and one[0].same(one[1]))
    ]
    merged: Reals = []
    for low, high in sorted(kept, key=lambda one: (one[0].at, not one[0].closed)):
        if merged and (
            low.at < merged[-1][1].at or (low.at == merged[-1][1].at and (low.closed or merged[-1][1].closed))
        ):
            last = merged[-1]
            merged[-1] = (last[0], max(last[1], high, key=lambda end: (end.at, end.closed)))
        else:
            merged.append((low, high))
    return merged


def _cut(one: tuple[_End, _End], two: tuple[_End, _End]) -> tuple[_End, _End] | None:
    low = max(one[0], two[0], key=lambda end: (end.at, not end.closed))
    high = min(one[1], two[1], key=lambda end: (end.at, end.closed))
    return (low, high) if low.at < high.at or (low.at == high.at and low.closed and high.closed) else None


def same_reals(answer: Any, gold: Any) -> bool:
    """Whether two descriptions by `reals` are one set, of one unknown where both name it."""
    if answer[0] and gold[0] and answer[0] != gold[0]:
        return False
    pairs = list(zip(answer[1], gold[1], strict=False))
    return len(answer[1]) == len(gold[1]) and all(a[0].same(g[0]) and a[1].same(g[1]) for a, g in pairs)
