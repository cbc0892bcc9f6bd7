r"""The outer form of an answer: a list, tuple, interval, set, union, matrix, relation, or a single expression.

Only brackets, commas and relation signs at the outermost level are looked at here; what stands between them is left
to the grammar (expo_ray.verifier.math.syntax).
"""

import re
from dataclasses import dataclass
from itertools import accumulate

from expo_ray.verifier.math import words
from expo_ray.verifier.math.units import quantity
from expo_ray.verifier.math.words import MAX_DEPTH, NotDecided

_OPEN = ("(", "[", "{", "\\{", "\\langle", "\\begin")
_CLOSE = (")", "]", "}", "\\}", "\\rangle", "\\end")
_TOKEN = re.compile(r"\\text\{[^{}]*\}|\\[A-Za-z]+|\\.|.", re.DOTALL)
_RELATIONS = {"=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx", "\\equiv", "\\to"}
_LOGIC = re.compile(
    r",?\s*(?:\\text\{\s*,?\s*(and|or)\s*\}|(?<![A-Za-z\\])(and|or)(?![A-Za-z])|\\(lor|land)(?![A-Za-z]))\s*,?"
)
_MATRIX = re.compile(
    r"(?P<scale>.*?)(?P<bar>[(\[|]?)\\begin\{(?P<kind>[pbvBV]?(?:small)?matrix|array)\}(?:\{[lcr|]*\})?"
    r"(?P<body>.*)\\end\{(?P=kind)\}[)\]|]?(?P<turned>\^\{(?:T|\\top|\\text\{T\})\})?",
    re.DOTALL,
)
_TURNED = re.compile(r"\(([^()]*)\)\^\{(?:T|\\top|\\text\{T\})\}")
_SET_SIGNS = {"\\cup", "\\cap", "\\setminus"}
_BUILDER = re.compile(r"\\\{\(?([A-Za-z])(?:\\in(?:\\mathbb\{R\}|\\text\{R\}|R))?(?:\||:)(.*)\\\}", re.DOTALL)
_ALTERNATIVE = re.compile(r"(.+?)(?:\\text\{ ?\(or ?\}|\(or ?|\\text\{ ?\(or )([^()]+?)(?:\)\}|\))")


@dataclass(frozen=True, slots=True)
class Shape:
    """One node.

    kind is leaf, list, tuple, set, union, matrix or relation. `text` is the cleaned text it was read from.
    marks: a tuple's two brackets, a relation's or union's signs, a list's joining word ("," without one), a matrix's
    number of columns.
    """

    kind: str
    text: str
    parts: tuple["Shape", ...] = ()
    marks: tuple[str, ...] = ()


def _all(parts: list[str], depth: int) -> tuple[Shape, ...]:
    return tuple(read(part, depth + 1) for part in parts)


def read(text: str, depth: int = 0) -> Shape:
    """The shape of a cleaned answer, or of a part of one that stands in `depth` others.

    Raises:
        NotDecided: brackets nested beyond MAX_DEPTH.
    """
    if depth > MAX_DEPTH:
        raise NotDecided("nested too deep")
    text = words.canonical(_without_group(text.strip()))
    if (either := _ALTERNATIVE.fullmatch(text)) is not None:
        return Shape("relation", text, _all(list(either.groups()), depth), ("=",))
    if _LOGIC.search(text) and quantity(text).unit is not None:
        return Shape("leaf", text)  # 2 hours and 30 minutes
    joins = {word for match in _LOGIC.findall(text) for word in match if word}
    listed, join = text, ","
    if joins:
        pieces = _LOGIC.sub("\n", text).strip("\n").split("\n")
        pairs = all("," in piece and "=" in piece for piece in pieces)  # x=1, y=2 or x=3, y=4
        listed = (";" if pairs else ",").join(pieces)
        join = "and" if joins & {"and", "land"} else "or"
    elements = next((parts for separator in ";," if len(parts := split(listed, {separator})[0]) > 1), [])
    if elements:
        if not all(elements):
            return Shape("leaf", text)
        spread = [variant for part in elements for variant in _both_signs(part)]
        return Shape("list", text, _all(spread, depth), (join,))
    both = _both_signs(listed)
    if len(both) > 1 and not listed.startswith("\\{"):
        return Shape("list", text, _all(both, depth), ("or",))
    operands, signs = split(text, _RELATIONS)
    if signs and all(operands):
        return Shape("relation", text, _all(operands, depth), tuple(signs))
    if "\\begin{" in text:
        return _matrix(text, depth) or Shape("leaf", text)
    sets, signs = split(text, _SET_SIGNS)
    if signs and all(sets):
        return Shape("union", text, _all(sets, depth), tuple(signs))
    return _bracketed(text, depth)


def _bracketed(text: str, depth: int) -> Shape:
    builder = _BUILDER.fullmatch(text)
    if builder is not None and split(builder.group(2), _RELATIONS)[1]:
        return read(builder.group(2), depth + 1)
    if (turned := _TURNED.fullmatch(text)) is not None and len(cells := split(turned.group(1), {","})[0]) > 1:
        return Shape("matrix", text, _all(cells, depth), ("1",))
    if re.fullmatch(r"\][^\[\]]+,[^\[\]]+\[|\][^\[\]]+,[^\[\]]+\]|\[[^\[\]]+,[^\[\]]+\[", text):
        # The French way to write open ends: ]1,2[ is (1,2).
        text = ("(" if text[0] == "]" else "[") + text[1:-1] + (")" if text[-1] == "[" else "]")
    tokens = _TOKEN.findall(text)
    if len(tokens) < 2 or tokens[0] not in _OPEN or tokens[-1] not in _CLOSE or not _spans(tokens):
        return Shape("leaf", text)
    inside = "".join(tokens[1:-1]).strip()
    opening, closing = tokens[0], tokens[-1]
    if opening == "\\{":
        inside = _LOGIC.sub(",", inside)
    elements = next((parts for separator in ";," if len(parts := split(inside, {separator})[0]) > 1), [inside])
    if (opening, closing) == ("\\{", "\\}"):
        spread = [variant for part in elements if inside for variant in _both_signs(part)]
        return Shape("set", text, _all(spread, depth))
    if len(elements) > 1 and all(elements):
        if opening == "\\langle":
            opening, closing = "(", ")"
        return Shape("tuple", text, _all(elements, depth), (opening, closing))
    if (opening, closing) in (("(", ")"), ("{", "}"), ("[", "]")) and inside:
        return read(inside, depth + 1)
    return Shape("leaf", text)


def _depths(tokens: list[str]) -> list[int]:
    return list(accumulate((token in _OPEN) - (token in _CLOSE) for token in tokens))


def split(text: str, separators: set[str]) -> tuple[list[str], list[str]]:
    """Parts between separators outside all brackets, and the separators met."""
    parts, found = [""], []
    tokens = _TOKEN.findall(text)
    for token, depth in zip(tokens, _depths(tokens), strict=True):
        if depth == 0 and token in separators:
            parts.append("")
            found.append(token)
        else:
            parts[-1] += token
    return [part.strip() for part in parts], found


def _spans(tokens: list[str]) -> bool:
    """Whether the first bracket is closed by the last token."""
    *before, last = _depths(tokens)
    return last == 0 and 0 not in before


def _without_group(text: str) -> str:
    while text.startswith("{") and text.endswith("}") and _spans(_TOKEN.findall(text)):
        text = text[1:-1].strip()
    return text


def _both_signs(text: str) -> list[str]:
    r"""`a\pm b` as its two values; anything else as it is."""
    found = []
    for plus, minus in ("+-", "-+"):
        signed = re.sub(r"\\pm(?![A-Za-z]) ?", plus, re.sub(r"\\mp(?![A-Za-z]) ?", minus, text))
        found.append(signed.strip())
    return list(dict.fromkeys(found))


def _matrix(text: str, depth: int) -> Shape | None:
    """A matrix, with a factor, or a sum of such; a determinant is the expression that it stands for."""
    lone = _MATRIX.fullmatch(text)
    if lone is not None and (lone["bar"] == "|" or lone["kind"] in ("vmatrix", "Vmatrix")):
        square = None if lone["scale"] else _rows(lone)
        return Shape("leaf", _determinant(square)) if square and len(square) == len(square[0]) <= 4 else None
    operands, signs = split(text, {"+", "-"})
    total: list[list[str]] = []
    for sign, operand in zip(["+", *signs], operands, strict=True):
        if not operand and not total:
            continue  # before the first sign
        match = _MATRIX.fullmatch(operand)
        rows = None if match is None else _rows(match)
        if rows is None or (total and [*map(len, rows)] != [*map(len, total)]):
            return None
        if total:
            rows = [[f"{a}{sign}({b})" for a, b in zip(*pair, strict=True)] for pair in zip(total, rows, strict=True)]
        elif sign == "-":
            rows = [[f"-({cell})" for cell in row] for row in rows]
        total = rows
    return Shape("matrix", text, _all([cell for row in total for cell in row], depth), (str(len(total[0])),))


def _rows(match: re.Match[str]) -> list[list[str]] | None:
    """The cells of a matrix, times its factor; None if it is not one."""
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match["body"]) if row.strip()]
    cells = [[cell.strip() for cell in row.replace("\\hline", "").split("&")] for row in rows]
    if not cells or any(len(row) != len(cells[0]) or not all(row) for row in cells) or "\\begin" in match["body"]:
        return None
    if match["turned"]:
        cells = [list(row) for row in zip(*cells, strict=True)]
    if scale := match["scale"].removesuffix("\\cdot"):
        cells = [[f"({scale})\\cdot({cell})" for cell in row] for row in cells]
    return cells


def _determinant(rows: list[list[str]]) -> str:
    """The expression of a determinant, along its first row."""
    if len(rows) == 1:
        return rows[0][0]
    minors = [_determinant([row[:at] + row[at + 1 :] for row in rows[1:]]) for at in range(len(rows))]
    signed = zip("+-" * len(rows), rows[0], minors, strict=False)
    return "".join(f"{sign}({cell})\\cdot({minor})" for sign, cell, minor in signed)
