r"""The outer form of an answer: a list, tuple, interval, set, union, matrix, relation, or a single expression.

Only brackets, commas and relation signs at the outermost level are looked at here; what stands between them is
left to math-verify's grammar. math-verify alone takes `(1,2)` for an interval and lets lists stand for tuples,
which is how close but wrong answers pass.
"""

import re
from dataclasses import dataclass, field

from expo_ray.verifier.math.number import MAX_DEPTH, NotDecided

_OPEN = ("(", "[", "{", "\\{", "\\langle")
_CLOSE = (")", "]", "}", "\\}", "\\rangle")
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|.", re.DOTALL)
_RELATIONS = {"=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx", "\\equiv", "\\to"}
_LOGIC = re.compile(
    r",?\s*(?:\\text\{\s*,?\s*(and|or)\s*\}|(?<![A-Za-z\\])(and|or)(?![A-Za-z])|\\(lor|land)(?![A-Za-z]))\s*,?"
)
_MATRIX = re.compile(
    r"(?P<scale>.*?)[(\[|]?\\begin\{(?P<kind>[pbvBV]?(?:small)?matrix|array)\}(?:\{[lcr|]*\})?"
    r"(?P<body>.*)\\end\{(?P=kind)\}[)\]|]?",
    re.DOTALL,
)
_WITHOUT = re.compile(r"(?:\\mathbb\{R\}|\(-\\infty,\\infty\))(?:\\setminus|\\backslash|-|\\)\\\{([^,]+)\\\}")
_BUILDER = re.compile(r"\\\{\(?([A-Za-z])(?:\\in(?:\\mathbb\{R\}|\\text\{R\}|R))?(?:\||:)(.*)\\\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shape:
    """One node.

    kind is leaf, list, tuple, set, union, matrix or relation. `text` is the cleaned text it was read from.
    marks: a tuple's two brackets, a relation's signs, a list's joining word, a matrix's columns.
    """

    kind: str
    text: str
    parts: tuple["Shape", ...] = ()
    marks: tuple[str, ...] = field(default=())


def read(text: str) -> Shape:
    """The shape of a cleaned answer.

    Raises:
        NotDecided: brackets nested beyond MAX_DEPTH.
    """
    return _read(text.strip(), 0)


def _read(text: str, depth: int) -> Shape:
    if depth > MAX_DEPTH:
        raise NotDecided("nested too deep")
    text = _without_group(text)
    if "\\begin{" in text:
        return _matrix(text, depth) or Shape("leaf", text)
    joins = {word for match in _LOGIC.findall(text) for word in match if word}
    if joins:
        text = _LOGIC.sub(",", text).strip(",")
    join = "and" if joins & {"and", "land"} else "or"
    elements = [part for separator in ",;" for part in [split(text, {separator})[0]] if len(part) > 1]
    if elements:
        if any(not part for part in elements[0]):
            return Shape("leaf", text)
        spread = [variant for part in elements[0] for variant in _both_signs(part)]
        return Shape("list", text, tuple(_read(part, depth + 1) for part in spread), (join,))
    both = _both_signs(text)
    if len(both) > 1 and not text.startswith("\\{"):
        return Shape("list", text, tuple(_read(part, depth + 1) for part in both), ("or",))
    operands, signs = split(text, _RELATIONS)
    if signs and all(operands):
        return Shape("relation", text, tuple(_read(part, depth + 1) for part in operands), tuple(signs))
    if (punctured := _WITHOUT.fullmatch(text)) is not None:
        return _read(f"(-\\infty,{punctured.group(1)})\\cup({punctured.group(1)},\\infty)", depth + 1)
    union, _ = split(text, {"\\cup"})
    if len(union) > 1 and all(union):
        return Shape("union", text, tuple(_read(part, depth + 1) for part in union))
    return _bracketed(text, depth)


def _bracketed(text: str, depth: int) -> Shape:
    builder = _BUILDER.fullmatch(text)
    if builder is not None and split(builder.group(2), _RELATIONS)[1]:
        return _read(builder.group(2), depth + 1)
    tokens = _TOKEN.findall(text)
    if len(tokens) < 2 or tokens[0] not in _OPEN or tokens[-1] not in _CLOSE or not _spans(tokens):
        return Shape("leaf", text)
    inside = "".join(tokens[1:-1]).strip()
    opening, closing = tokens[0], tokens[-1]
    if (opening, closing) == ("\\{", "\\}"):
        elements = split(inside, {","})[0] if inside else []
        spread = [variant for part in elements for variant in _both_signs(part)]
        return Shape("set", text, tuple(_read(part, depth + 1) for part in spread))
    elements = split(inside, {","})[0]
    if len(elements) > 1 and all(elements):
        if opening == "\\langle":
            opening, closing = "(", ")"
        return Shape("tuple", text, tuple(_read(part, depth + 1) for part in elements), (opening, closing))
    if (opening, closing) in (("(", ")"), ("{", "}"), ("[", "]")) and inside:
        return _read(inside, depth + 1)
    return Shape("leaf", text)


def split(text: str, separators: set[str]) -> tuple[list[str], list[str]]:
    """Parts between separators outside all brackets, and the separators met."""
    parts: list[str] = []
    found: list[str] = []
    current: list[str] = []
    depth = 0
    for token in _TOKEN.findall(text):
        if token in _OPEN:
            depth += 1
        elif token in _CLOSE:
            depth -= 1
        if depth == 0 and token in separators:
            parts.append("".join(current).strip())
            found.append(token)
            current = []
        else:
            current.append(token)
    parts.append("".join(current).strip())
    return parts, found


def _spans(tokens: list[str]) -> bool:
    """Whether the first bracket is closed by the last token."""
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0:
            return index == len(tokens) - 1
    return False


def _without_group(text: str) -> str:
    while text.startswith("{") and text.endswith("}") and _spans(_TOKEN.findall(text)):
        text = text[1:-1].strip()
    return text


def _both_signs(text: str) -> list[str]:
    r"""`a\pm b` as its two values; anything else as it is."""
    if "\\pm" not in text and "\\mp" not in text:
        return [text]
    signs = (("+", "-"), ("-", "+"))
    return [re.sub(r"\\mp ?", minus, re.sub(r"\\pm ?", plus, text)).strip() for plus, minus in signs]


def _matrix(text: str, depth: int) -> Shape | None:
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match.group("body"):
        return None
    scale = match.group("scale").rstrip("([|").removesuffix("\\cdot")
    if scale in ("-", "+"):
        scale += "1"
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match.group("body")) if row.strip()]
    cells = [[cell.strip() for cell in row.replace("\\hline", "").split("&")] for row in rows]
    if not cells or any(len(row) != len(cells[0]) or not all(row) for row in cells):
        return None
    if scale:
        cells = [[f"({scale})\\cdot ({cell})" for cell in row] for row in cells]
    kind = "determinant" if match.group("kind") in ("vmatrix", "Vmatrix") or "|\\begin" in text else "matrix"
    parts = tuple(_read(cell, depth + 1) for row in cells for cell in row)
    return Shape("matrix", text, parts, (kind, str(len(cells[0]))))
