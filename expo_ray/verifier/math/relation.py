"""Equations and inequalities: what names a value, equal solutions, and sets of real numbers in one normal form."""

import re
from dataclasses import dataclass

from expo_ray.verifier.math import value
from expo_ray.verifier.math.shape import Shape
from expo_ray.verifier.math.syntax import Node, parse, parse_all, symbols
from expo_ray.verifier.math.words import NOTATION

FLIP = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "=": "=", "\\ne": "\\ne"}
_UNKNOWNS = NOTATION["unknowns"]
_NAME = re.compile("|".join(_UNKNOWNS["names"]).replace("ONE", _UNKNOWNS["one"]).replace("GREEK", _UNKNOWNS["greek"]))
_CALL = re.compile("|".join(_UNKNOWNS["calls"]))
_WORDS = re.compile(r"\\text\{ ?([A-Za-z][A-Za-z ]*)\}(?: ?(?:\\(?:triangle|angle|odot) ?)?[A-Z]{0,4})?")
_NEGATION = re.compile(
    r"\b(?:not?|none|never|neither|either|nor|cannot|isn|false|wrong|incorrect|except|unlike|or|maybe|more|less|than|about"
    r"|least|most|minus|plus|half|twice|negative|opposite|anything|impossible|undefined)\b",
    re.IGNORECASE,
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
        percent = any(side.text.endswith("\\%") for side in sides)  # 2/5 = 40\%
        trees = parse_all(f"({s.text[:-2]})/100" if s.text.endswith("\\%") else s.text for s in sides)
        if trees is None or not all(value.equal(tree, trees[-1]) for tree in trees[:-1]):
            return None
        if (percent or not name) and any(map(symbols, trees)):
            return None
    return name, sides[-1]


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
        if is_name(name) and not ((tree := parse(other)) and symbols(tree)):
            return True
    return len(relation.parts) == 3 and is_name(relation.parts[1].text)


def proportional(answer: Shape, gold: Shape) -> bool:
    """Whether left minus right of one is a constant times that of the other, with the sign that the relation needs."""
    if len(answer.parts) != 2 or len(gold.parts) != 2 or answer.marks[0] not in FLIP:
        return False
    if is_solved(gold) and not is_solved(answer):
        # The question itself is no answer: 2x + 3 = 17 does not say that x = 7.
        return False
    sides = parse_all(part.text for part in (*answer.parts, *gold.parts))
    if sides is None:
        return False
    sign = value.proportional(("+", sides[0], ("-", sides[1])), ("+", sides[2], ("-", sides[3])))
    return sign != 0 and gold.marks[0] == (answer.marks[0] if sign > 0 else FLIP[answer.marks[0]])


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


Interval = tuple[_End, _End]
Reals = tuple[str, list[Interval]]
"""The name of the unknown, or "", and intervals in order."""
LOWEST, HIGHEST = _End(-float("inf"), None, False), _End(float("inf"), None, False)
_INFINITE = {"\\infty": HIGHEST, "+\\infty": HIGHEST, "-\\infty": LOWEST}


def reals(shape: Shape) -> Reals | None:
    """The set of real numbers that a shape describes; None where it is none.

    Intervals, unions, sets of numbers, inequalities, and inequalities joined by "and", "or" or a comma.
    """
    if shape.text == "\\emptyset":
        return "", []
    if shape.kind in ("union", "list"):
        return _joined(shape)
    if shape.kind == "relation":
        return _inequality(shape)
    if shape.kind == "tuple" and len(shape.parts) == 2:
        return _set("", (_end(shape.parts[0], shape.marks[0] == "["), _end(shape.parts[1], shape.marks[1] == "]")))
    return (
        _set("", *((end, end) for end in (_end(part, True) for part in shape.parts))) if shape.kind == "set" else None
    )


def _set(name: str, *intervals: tuple[_End | None, _End | None]) -> Reals | None:
    """Intervals in order, without empty ones, joined where they touch; None if an end is unknown."""
    known = [(low, high) for low, high in intervals if low is not None and high is not None]
    if len(known) < len(intervals):
        return None
    merged: list[Interval] = []
    for low, high in sorted(known, key=lambda one: (one[0].at, not one[0].closed)):
        if low.at >= high.at and not (low.closed and high.closed and low.same(high)):
            continue
        last = merged[-1] if merged else (LOWEST, LOWEST)
        if merged and (low.at < last[1].at or (low.at == last[1].at and (low.closed or last[1].closed))):
            merged[-1] = last[0], max(last[1], high, key=lambda end: (end.at, end.closed))
        else:
            merged.append((low, high))
    return name, merged


def _cut(ones: list[Interval], twos: list[Interval]) -> list[Interval]:
    """What two sets have in common; some of the intervals may be empty."""
    return [
        (
            max(one[0], two[0], key=lambda end: (end.at, not end.closed)),
            min(one[1], two[1], key=lambda end: (end.at, end.closed)),
        )
        for one in ones
        for two in twos
    ]


def _without(intervals: list[Interval]) -> list[Interval]:
    """All other real numbers; the intervals are in order and apart."""
    turned = [_End(end.at, end.tree, end.tree is not None and not end.closed) for one in intervals for end in one]
    ends = [LOWEST, *turned, HIGHEST]
    return list(zip(ends[::2], ends[1::2], strict=True))


def _joined(shape: Shape) -> Reals | None:
    parts, signs = list(shape.parts), list(shape.marks)
    if shape.kind == "list" and all(map(_is_interval, parts)):
        signs = ["\\cup"] * (len(parts) - 1)
    elif shape.kind == "list":
        head = parts[0]
        if head.kind != "relation" or set(head.marks) <= {"="}:
            return None
        if head.marks == ("\\ne",):
            # x \ne -1, 1 leaves out both.
            parts = [
                p if p.kind == "relation" else Shape("relation", p.text, (head.parts[0], p), ("\\ne",)) for p in parts
            ]
        signs = ["\\cup" if shape.marks == ("or",) and head.marks != ("\\ne",) else "\\cap"] * (len(parts) - 1)
    found = [reals(part) for part in parts]
    known = [one for one in found if one is not None]
    if len(known) < len(found) or len({name for name, _ in known}) > 1:
        return None
    name, both = known[0]
    for sign, (_, other) in zip(signs, known[1:], strict=True):
        both = [*both, *other] if sign == "\\cup" else _cut(both, other if sign == "\\cap" else _without(other))
    total = _set(name, *both)
    if total == (name, []) and shape.marks == (",",):  # x < 2, x > 5
        return _set(name, *(interval for _, intervals in known for interval in intervals))
    return total


def _is_interval(part: Shape) -> bool:
    """Whether a pair in a list can only be an interval: (-\\infty,2], [5,7) is a union, (1,2), (3,4) are two points."""
    return part.kind == "tuple" and bool({"[", "]"} & {*part.marks} or "\\infty" in part.text)


def _inequality(shape: Shape) -> Reals | None:
    parts, marks = shape.parts, shape.marks
    if is_name(parts[0].text) and marks == ("\\in",):
        inner = reals(parts[1])
        return None if inner is None else (parts[0].text, inner[1])
    if is_name(parts[0].text) and marks == ("\\ne",):
        end = _end(parts[1], False)
        return _set(parts[0].text, (LOWEST, end), (end, HIGHEST))
    if set(marks) & {">", "\\ge"} and not set(marks) & {"<", "\\le"}:
        parts, marks = parts[::-1], tuple(FLIP.get(mark, "") for mark in reversed(marks))
    if not set(marks) <= {"<", "\\le"} or len(parts) > 3:
        return None
    middle = next((i for i in ((1,) if len(parts) == 3 else (0, 1)) if _unknown(parts[i].text)), None)
    if middle is None:
        return None
    low = _end(parts[middle - 1], marks[middle - 1] == "\\le") if middle else LOWEST
    high = _end(parts[middle + 1], marks[middle] == "\\le") if middle + 1 < len(parts) else HIGHEST
    name = parts[middle].text
    if not name.startswith("|") or low is None or high is None:
        return _set(name, (low, high))
    below, above = (_End(-end.at, end.tree and ("-", end.tree), end.closed) for end in (high, low))
    return _set(name.strip("|"), (below, high)) if low is LOWEST else _set(name.strip("|"), (below, above), (low, high))


def _unknown(text: str) -> bool:
    return is_name(text.strip("|")) and parse(text.strip("|")) is not None


def _end(part: Shape, closed: bool) -> _End | None:
    tree = parse(part.text) if part.kind == "leaf" else None
    at = None if tree is None or symbols(tree) else value.approximate(tree)
    if part.text in _INFINITE:
        return None if closed else _INFINITE[part.text]
    return None if at is None else _End(at, tree, closed)


def same_reals(answer: Reals, gold: Reals) -> bool:
    """Whether two descriptions by `reals` are one set, of one unknown where both name it."""
    if answer[0] and gold[0] and answer[0] != gold[0]:
        return False
    pairs = zip(answer[1], gold[1], strict=False)
    return len(answer[1]) == len(gold[1]) and all(a[0].same(g[0]) and a[1].same(g[1]) for a, g in pairs)
