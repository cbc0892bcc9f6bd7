r"""The grammar of one expression, in cleaned LaTeX or plain text (expo_ray.verifier.math.clean).

`parse` returns a tree of tuples: ("num", Fraction), ("sym", name), or an operator with its operands, for example
("+", a, b), ("^", base, exponent), ("sin", x). Products may be written without a sign. A text of which any part is
unknown is unreadable as a whole: nothing is skipped.
"""

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any

from expo_ray.verifier.math.words import MAX_ANSWER, MAX_DEPTH, NOTATION, NotDecided, repeating

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


@lru_cache(maxsize=4096)
def parse(text: str) -> Node | None:
    """The tree of a cleaned text; None where it is not an expression.

    Raises:
        NotDecided: brackets nested deeper than MAX_DEPTH.
    """
    bare = re.sub(r"_\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    if not text or len(text) > MAX_ANSWER or _WORD.search(bare) or _DERIVATIVE.search(text):
        return None
    # Bars count as brackets that only open.
    if max(accumulate((char in "([{|") - (char in ")]}") for char in text)) > MAX_DEPTH:
        raise NotDecided("nested too deep")
    parser = _Parser(text)
    try:
        found = parser.sum()
    except Unreadable:
        return None
    return None if parser.peek() else found


def parse_all(texts: Iterable[str]) -> list[Node] | None:
    """The trees of several cleaned texts; None if one of them is not an expression."""
    trees = [parse(text) for text in texts]
    known = [tree for tree in trees if tree is not None]
    return known if len(known) == len(trees) else None


def symbols(node: Node, bound: frozenset[str] = frozenset()) -> frozenset[str]:
    """The names in a tree that stand for an unknown: everything but numbers, e, i, pi and running indices."""
    kind, *children = node
    if kind == "num":
        return frozenset()
    if kind == "sym":
        return frozenset(children) - bound - {"e", "i", "\\pi"}
    if kind in ("sum", "prod", "int"):
        index, low, high, body = children
        return symbols(body, bound | {index}) | symbols(low, bound) | symbols(high, bound)
    named = frozenset(children[:1]) if kind == "apply" else frozenset()
    return named.union(*(symbols(child, bound) for child in children if isinstance(child, tuple)))


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
        """Brackets that are open: where an absolute value is the last, a bar closes it instead of opening another."""

    def peek(self, ahead: int = 0) -> str:
        while self.tokens[self.at : self.at + 1] == [" "]:
            self.at += 1
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def accept(self, *tokens: str) -> bool:
        """Take the next token if it is one of these."""
        found = self.peek() in tokens
        self.at += found
        return found

    def expect(self, *tokens: str) -> None:
        for token in tokens:
            if self.take() != token:
                raise Unreadable(f"no {token}")

    def enclosed(self, opening: str, closing: str) -> Node:
        self.expect(opening)
        found = self.sum()
        self.expect(closing)
        return found

    def group(self) -> Node:
        return self.enclosed("{", "}")

    def sum(self) -> Node:
        parts = [self.signed()]
        while self.peek() in ("+", "-"):
            parts.append(self.signed())
        return parts[0] if len(parts) == 1 else ("+", *parts)

    def signed(self) -> Node:
        negative = False
        for _ in range(3):
            negative ^= self.peek() == "-"
            if not self.accept("+", "-"):
                break
        return ("-", self.product()) if negative else self.product()

    def product(self) -> Node:
        found = self.power()
        while True:
            token = self.peek()
            if self.accept("\\cdot", "/"):
                sign = self.accept("-")
                right = ("-", self.power()) if sign else self.power()
                found = ("/" if token == "/" else "*", found, right)
            elif self.starts_factor():
                if token == "{" and re.match("[0-9]", "".join(self.tokens[self.at + 1 : self.at + 2])):
                    raise Unreadable("numbers in groups side by side")
                # Two numbers side by side are no product: 7 8 is neither 78 nor 56.
                before = self.tokens[self.at - 1]
                powers = before == "}" and self.peek(1) == "^"  # 2^{6}3^{5}
                if (token[0].isdigit() or token[0] == ".") and before != "!" and not powers:
                    raise Unreadable("numbers side by side")
                found = ("*", found, self.power())
            else:
                return found

    def starts_factor(self) -> bool:
        token = self.peek()
        if token in ("|", "\\|"):
            return token not in self.bars
        if token.startswith("\\") and len(token) > 1:
            known = token in GREEK or token[1:] in FUNCTIONS or token[1:] in ("frac", "sqrt", "binom", "vec", "int")
            return known or token in _CLOSING or token in _SERIES
        return bool(token) and (token.isalnum() or token[0] in ".([{")

    def power(self) -> Node:
        found = self.atom()
        while True:
            if self.accept("^"):
                exponent = self.group()
                found = ("^", found, ("^", exponent, self.group()) if self.accept("^") else exponent)
            elif self.accept("!"):
                found = ("fact2" if self.accept("!") else "fact", found)
            elif self.accept("\\degree"):
                found = ("/", ("*", found, ("sym", "\\pi")), ("num", Fraction(180)))
            else:
                return found

    def atom(self) -> Node:
        token = self.take()
        if token and (token[0].isdigit() or token[0] == "."):
            return self.number(token)
        if token in _CLOSING:
            self.bars.append(token)
            found = self.sum()
            self.expect(_CLOSING[self.bars.pop()])
            return (_AROUND[token], found) if token in _AROUND else found
        if token in GREEK or (len(token) == 1 and token.isalpha() and token.isascii()):
            return self.name(token)
        if token.startswith("\\"):
            return self.command(token)
        raise Unreadable(f"{token!r} starts nothing")

    def number(self, token: str) -> Node:
        if token == "." or not token.isascii():
            raise Unreadable("a lone point")
        # Only at the end of the text: 7 1/2 is seven and a half.
        mixed = re.match(r"\\frac\{(\d+)\}\{(\d+)\}| (\d+)/(\d+)\)?$", "".join(self.tokens[self.at : self.at + 7]))
        found = Fraction(token.rstrip("."))
        if "." in token and self.accept("\\overline"):
            whole, _point, fixed = token.partition(".")
            found = repeating(whole, fixed, self.digits())
        elif mixed and "." not in token:
            top, bottom = (int(part) for part in mixed.groups() if part)
            if 0 < top < bottom:
                self.at += 7 if mixed[1] else 4
                found += Fraction(top, bottom)
        elif self.peek() == "_":
            raise Unreadable("a number with a base")
        return ("num", found)

    def digits(self) -> str:
        self.expect("{")
        found = self.take()
        self.expect("}")
        if not found.isdigit():
            raise Unreadable("a cycle of no digits")
        return found

    def name(self, token: str) -> Node:
        if self.accept("_"):
            token += "_" + self.raw_group()
        while self.accept("'"):
            token += "'"
        if token in ("f", "g", "h") and "".join(self.tokens[self.at : self.at + 6]) == "^{-1}(":
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
        while self.accept(","):
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
            degree = self.enclosed("[", "]") if self.peek() == "[" else ("num", Fraction(2))
            return ("^", self.group(), ("/", ("num", Fraction(1)), degree))
        if name == "vec":
            return ("sym", "\\vec " + self.raw_group())
        if token in _SERIES:
            self.expect("_", "{")
            index = self.take()
            low = self.enclosed("=", "}")
            self.expect("^")
            return (_SERIES[token], index, low, self.group(), self.product())
        if name == "int":
            return self.integral()
        if name in FUNCTIONS:
            return self.function(name)
        raise Unreadable(f"{token} is not known")

    def integral(self) -> Node:
        """A definite integral of one variable, up to its first differential."""
        self.expect("_")
        low = self.group()
        self.expect("^")
        high = self.group()
        rest = "".join(self.tokens[self.at :])
        inside = re.match(r"(.+?)d ?([A-Za-z])(?![A-Za-z])", rest)
        body = inside and parse(inside[1].strip())
        if inside is None or body is None:
            raise Unreadable("no integral")
        self.at += len(_TOKEN.findall(inside[0]))
        return ("int", inside[2], low, high, body)

    def function(self, name: str) -> Node:
        exponent: Node | None = None
        base: Node | None = None
        for _ in range(2):
            if exponent is None and self.accept("^"):
                exponent = self.group()
            elif base is None and name == "log" and self.accept("_"):
                base = self.group()
        if exponent == ("-", ("num", Fraction(1))):
            if name not in _INVERSE:
                raise Unreadable(f"{name} has no inverse here")
            name, exponent = _INVERSE[name], None
        arguments = self.arguments() if self.peek() == "(" else [self.argument()]
        if len(arguments) != 1 and name not in ("max", "min", "gcd", "lcm"):
            raise Unreadable(f"{name} of several")
        found: Node = (name, *arguments) if base is None else ("/", ("ln", *arguments), ("ln", base))
        return found if exponent is None else ("^", found, exponent)

    def argument(self) -> Node:
        r"""What `\sin` and the like take without brackets: the product up to a sign or the next function."""
        sign = self.accept("-")
        found = self.power()
        while self.starts_factor() and self.peek()[1:] not in FUNCTIONS and not self.peek()[0].isdigit():
            found = ("*", found, self.power())
        return ("-", found) if sign else found
