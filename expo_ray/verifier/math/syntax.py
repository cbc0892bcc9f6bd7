r"""The grammar of one expression, in cleaned LaTeX or plain text (expo_ray.verifier.math.clean).

`parse` returns a tree of tuples: ("num", Fraction), ("sym", name), or an operator with its operands, for example
("+", a, b), ("^", base, exponent), ("sin", x). Products may be written without a sign. A text of which any part is
unknown is unreadable as a whole: nothing is skipped.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from expo_ray.verifier.math.clean import NOTATION
from expo_ray.verifier.math.words import MAX_ANSWER, MAX_DEPTH, NotDecided

Node = tuple[Any, ...]

FUNCTIONS = frozenset(NOTATION["names"]["functions"].split()) - {"det"}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
GREEK = frozenset("\\" + name for name in NOTATION["names"]["greek"].split())
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil", "|": "|", "\\|": "\\|"}
_AROUND = {"\\lfloor": "floor", "\\lceil": "ceil", "|": "abs", "\\|": "abs"}
_SERIES = {"\\sum": "sum", "\\prod": "prod"}
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[0-9]+(?:\.[0-9]*)?|\.[0-9]+|.", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]{4,}")
_DERIVATIVE = re.compile(r"\\frac\{d[^{}]*\}\{d[A-Za-z]")


class Unreadable(ValueError):
    """The text is not an expression that this grammar knows."""


def parse(text: str) -> Node | None:
    """The tree of a cleaned text; None where it is not an expression.

    Raises:
        NotDecided: brackets nested deeper than MAX_DEPTH.
    """
    try:
        return _parse(text)
    except Unreadable:
        return None


@lru_cache(maxsize=4096)
def _parse(text: str) -> Node:
    bare = re.sub(r"_\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    if not text or len(text) > MAX_ANSWER or _WORD.search(bare) or _DERIVATIVE.search(text):
        raise Unreadable(text[:80])
    if depth(text) > MAX_DEPTH:
        raise NotDecided("nested too deep")
    parser = _Parser(text)
    found = parser.sum()
    if parser.peek():
        raise Unreadable(f"{parser.peek()!r} is left over")
    return found


def depth(text: str) -> int:
    """How deep the brackets of a text are nested; bars count as brackets that only open."""
    level = deepest = 0
    for char in text:
        level += (char in "([{|") - (char in ")]}")
        deepest = max(deepest, level)
    return deepest


def symbols(node: Node, bound: frozenset[str] = frozenset()) -> frozenset[str]:
    """The names in a tree that stand for an unknown: everything but numbers, e, i, pi and running indices."""
    if node[0] == "num":
        return frozenset()
    if node[0] == "sym":
        return frozenset() if node[1] in ("e", "i", "\\pi") or node[1] in bound else frozenset((node[1],))
    if node[0] in _SERIES.values():
        inner = symbols(node[4], bound | {node[1]})
        return inner | symbols(node[2], bound) | symbols(node[3], bound)
    named = frozenset((node[1],)) if node[0] == "apply" else frozenset()
    return named.union(*(symbols(child, bound) for child in node[1:] if isinstance(child, tuple)))


def contains(node: Node, *kinds: str) -> bool:
    """Whether a tree has one of these operators or symbols anywhere."""
    if node[0] in kinds or (node[0] == "sym" and node[1] in kinds):
        return True
    return any(contains(child, *kinds) for child in node[1:] if isinstance(child, tuple))


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(text)
        self.at = 0
        self.bars: list[str] = []
        """Absolute values that are open: a bar then closes instead of opening another."""

    def peek(self, ahead: int = 0) -> str:
        while self.at < len(self.tokens) and self.tokens[self.at] == " ":
            self.at += 1
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unreadable(f"no {token}")

    def sum(self) -> Node:
        parts = [self.signed()]
        while self.peek() in ("+", "-"):
            parts.append(self.signed())
        return parts[0] if len(parts) == 1 else ("+", *parts)

    def signed(self) -> Node:
        negative = False
        for _ in range(3):
            if self.peek() not in ("+", "-"):
                break
            negative ^= self.take() == "-"
        return ("-", self.product()) if negative else self.product()

    def product(self) -> Node:
        found = self.power()
        while True:
            token = self.peek()
            if token in ("\\cdot", "/"):
                self.take()
                sign = self.peek() == "-"
                if sign:
                    self.take()
                right = self.power()
                right = ("-", right) if sign else right
                found = ("/", found, right) if token == "/" else ("*", found, right)
            elif self.starts_factor():
                if token == "{" and self.tokens[self.at + 1 : self.at + 2] and self.tokens[self.at + 1][0].isdigit():
                    raise Unreadable("numbers in groups side by side")
                # Two numbers side by side are no product: 7 8 is neither 78 nor 56.
                powers = self.tokens[self.at - 1] == "}" and self.peek(1) == "^"  # 2^{6}3^{5}
                if (token[0].isdigit() or token[0] == ".") and self.tokens[self.at - 1] != "!" and not powers:
                    raise Unreadable("numbers side by side")
                found = ("*", found, self.power())
            else:
                return found

    def starts_factor(self) -> bool:
        token = self.peek()
        if token in ("|", "\\|"):
            return token not in self.bars
        if token.startswith("\\") and len(token) > 1:
            name = token[1:]
            known = token in GREEK or name in FUNCTIONS or name in ("frac", "sqrt", "binom", "vec", "circ")
            return known or token in _CLOSING or token in _SERIES
        return bool(token) and (token.isalnum() or token[0] in ".([{")

    def power(self) -> Node:
        found = self.atom()
        while self.peek() in ("^", "!", "\\degree"):
            token = self.take()
            if token == "^":
                exponent = self.group()
                if self.peek() == "^":
                    self.take()
                    exponent = ("^", exponent, self.group())
                found = ("^", found, exponent)
            elif token == "!":
                double = self.peek() == "!"
                if double:
                    self.take()
                found = ("fact2" if double else "fact", found)
            else:
                found = ("/", ("*", found, ("sym", "\\pi")), ("num", Fraction(180)))
        return found

    def group(self) -> Node:
        """A braced argument."""
        self.expect("{")
        found = self.sum()
        self.expect("}")
        return found

    def atom(self) -> Node:
        token = self.take()
        if token and (token[0].isdigit() or token[0] == "."):
            return self.number(token)
        if token in _CLOSING:
            return self.bracket(token)
        if token.startswith("\\") and token not in GREEK:
            return self.command(token)
        if (len(token) == 1 and token.isalpha() and token.isascii()) or token in GREEK:
            return self.name(token)
        raise Unreadable(f"{token!r} starts nothing")

    def number(self, token: str) -> Node:
        if len(token) < 2 and not token.isdigit():
            raise Unreadable("a lone point")
        if self.peek() == "\\overline" and "." in token:
            self.take()
            return ("num", self.repeating(token))
        if self.peek() == "_":
            raise Unreadable("a number with a base")
        value = Fraction(token.rstrip(".") or "0")
        mixed = self.tokens[self.at : self.at + 7]
        if "." not in token and len(mixed) == 7 and mixed[0::3] == ["\\frac", "}", "}"] and mixed[1::3] == ["{", "{"]:
            top, bottom = mixed[2], mixed[5]
            if top.isdigit() and bottom.isdigit() and 0 < int(top) < int(bottom):
                self.at += 7
                return ("num", value + Fraction(int(top), int(bottom)))
        return ("num", value)

    def repeating(self, token: str) -> Fraction:
        self.expect("{")
        cycle = self.take()
        self.expect("}")
        if not cycle.isdigit():
            raise Unreadable("a cycle of no digits")
        whole, _point, fixed = token.partition(".")
        head = Fraction(int((whole + fixed) or "0"), 10 ** len(fixed))
        return head + Fraction(int(cycle), 10 ** len(fixed) * (10 ** len(cycle) - 1))

    def bracket(self, opening: str) -> Node:
        closing = _CLOSING[opening]
        if opening in ("|", "\\|"):
            self.bars.append(opening)
        else:
            self.bars.append("")
        found = self.sum()
        self.expect(closing)
        self.bars.pop()
        return (_AROUND[opening], found) if opening in _AROUND else found

    def name(self, token: str) -> Node:
        if self.peek() == "_":
            self.take()
            token += "_" + self.raw_group()
        while self.peek() == "'":
            token += self.take()
        ahead = self.tokens[self.at : self.at + 5]
        if token in ("f", "g", "h") and ahead == ["^", "{", "-", "1", "}"] and self.peek(5) == "(":
            self.at += 5
            token += "^{-1}"
        if re.fullmatch(r"[fgh](?:_.*|'+|\^\{-1\})?", token) and self.peek() == "(":
            return ("apply", token, *self.arguments())
        return ("sym", token)

    def raw_group(self) -> str:
        self.expect("{")
        parts = []
        while self.peek() not in ("}", "{", ""):
            parts.append(self.take())
        self.expect("}")
        if not parts:
            raise Unreadable("an empty subscript")
        return "".join(parts)

    def arguments(self) -> list[Node]:
        self.expect("(")
        found = [self.sum()]
        while self.peek() == ",":
            self.take()
            found.append(self.sum())
        self.expect(")")
        return found

    def command(self, token: str) -> Node:
        name = token[1:]
        if name == "frac":
            return ("/", self.group(), self.group())
        if name == "binom":
            return ("binom", self.group(), self.group())
        if name == "sqrt":
            degree: Node = ("num", Fraction(2))
            if self.peek() == "[":
                self.take()
                degree = self.sum()
                self.expect("]")
            return ("^", self.group(), ("/", ("num", Fraction(1)), degree))
        if name == "vec":
            return ("sym", "\\vec " + self.raw_group())
        if token in _SERIES:
            return self.series(_SERIES[token])
        if name in FUNCTIONS:
            return self.function(name)
        raise Unreadable(f"{token} is not known")

    def series(self, kind: str) -> Node:
        self.expect("_")
        self.expect("{")
        index = self.take()
        self.expect("=")
        low = self.sum()
        self.expect("}")
        self.expect("^")
        return (kind, index, low, self.group(), self.product())

    def function(self, name: str) -> Node:
        exponent: Node | None = None
        base: Node | None = None
        for _ in range(2):
            if self.peek() == "^" and exponent is None:
                self.take()
                exponent = self.group()
            elif self.peek() == "_" and base is None and name == "log":
                self.take()
                base = self.group()
        if exponent == ("-", ("num", Fraction(1))):
            if name not in _INVERSE:
                raise Unreadable(f"{name} has no inverse here")
            name, exponent = _INVERSE[name], None
        arguments = self.arguments() if self.peek() == "(" else [self.argument()]
        if base is not None:
            found: Node = ("/", ("ln", *arguments), ("ln", base))
        else:
            found = (name, *arguments)
        if len(arguments) != 1 and name not in ("max", "min", "gcd", "lcm"):
            raise Unreadable(f"{name} of several")
        return found if exponent is None else ("^", found, exponent)

    def argument(self) -> Node:
        r"""What `\sin` and the like take without brackets: the product up to a sign or the next function."""
        sign = self.peek() == "-"
        if sign:
            self.take()
        found = self.power()
        while self.starts_factor() and self.peek()[1:] not in FUNCTIONS and not self.peek()[0].isdigit():
            found = ("*", found, self.power())
        return ("-", found) if sign else found
