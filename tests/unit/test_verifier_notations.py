"""The comparison against itself: random expressions in two notations are equal, and spoiled ones are not."""

import random
from fractions import Fraction
from typing import Any

from expo_ray.verifier.math import compare

NAMES = ("x", "y", "n")


def tree(draw: random.Random, depth: int) -> Any:
    """A random expression: a number, a name, or (operator, operands)."""
    if depth == 0 or draw.random() < 0.2:
        return draw.choice(NAMES) if draw.random() < 0.4 else draw.randint(1, 60)
    operator = draw.choice("+-*/^")
    if operator == "^":
        return operator, tree(draw, depth - 1), draw.randint(2, 4)
    return operator, tree(draw, depth - 1), tree(draw, depth - 1)


def latex(node: Any) -> str:
    """As a paper prints it: fractions, braces, `\\cdot`, brackets with \\left."""
    if not isinstance(node, tuple):
        return str(node)
    operator, left, right = node
    if operator == "/":
        return rf"\dfrac{{{latex(left)}}}{{{latex(right)}}}"
    if operator == "^":
        return rf"\left({latex(left)}\right)^{{{right}}}"
    if operator == "*":
        return rf"\left({latex(left)}\right)\cdot\left({latex(right)}\right)"
    return rf"{latex(left)} {operator} \left({latex(right)}\right)"


def plain(node: Any) -> str:
    """As a program writes it, sums and products in the other order."""
    if not isinstance(node, tuple):
        return str(node)
    operator, left, right = node
    first, second = f"({plain(left)})", f"({plain(right)})"
    return f"{second}{operator}{first}" if operator in "+*" else f"{first}{operator}{second}"


def value(node: Any, at: dict[str, Fraction]) -> Fraction:
    """The value by Python's own arithmetic."""
    if not isinstance(node, tuple):
        return at[node] if isinstance(node, str) else Fraction(node)
    operator, left, right = node
    first, second = value(left, at), value(right, at)
    if operator == "^":
        return first**right
    return (
        {"+": first + second, "-": first - second, "*": first * second}[operator] if operator != "/" else first / second
    )


def spoiled(node: Any, draw: random.Random) -> Any:
    """The same with one number, name or sign changed."""
    if not isinstance(node, tuple):
        return (
            node + draw.choice((-1, 1, 10)) if isinstance(node, int) else draw.choice([n for n in NAMES if n != node])
        )
    operator, left, right = node
    if operator in "+-" and draw.random() < 0.3:
        return "-" if operator == "+" else "+", left, right
    if operator == "^" or draw.random() < 0.5:
        return operator, spoiled(left, draw), right
    return operator, left, spoiled(right, draw)


def check(count: int, seed: int) -> None:
    """Compare `count` expressions that have a value in two notations, and each with a spoiled one of another value."""
    draw = random.Random(seed)
    made = 0
    while made < count:
        node = tree(draw, draw.randint(1, 3))
        other = spoiled(node, draw)
        points = [{name: Fraction(draw.randint(2, 999), 7) for name in NAMES} for _ in range(3)]
        try:
            differs = any(value(node, at) != value(other, at) for at in points)
        except ZeroDivisionError:
            continue
        if not differs:
            continue
        made += 1
        assert compare.equal(plain(node), latex(node))[0], (plain(node), latex(node))
        assert not compare.equal(latex(other), latex(node))[0], (latex(other), latex(node))
        assert not compare.equal(plain(other), latex(node))[0], (plain(other), latex(node))


def test_random_expressions() -> None:
    check(300, seed=1)
