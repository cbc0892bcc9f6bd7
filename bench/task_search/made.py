"""Made problems whose answer is hard to find and easy to check, each with a solution that checks it aloud."""

import csv
import itertools
import math
import random
import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache

Made = tuple[str, str, str]
"""Question, answer, solution without the final statement of the answer."""


def factors(chance: random.Random, low: int, high: int) -> Made:
    """The smaller prime of a product of two primes from `low` to `high`."""
    primes = [n for n in range(low, high + 1) if all(n % k for k in range(2, math.isqrt(n) + 1))]
    small, large = sorted(chance.sample(primes, 2))
    return (
        f"{small * large} is the product of two prime numbers. What is the smaller one?",
        str(small),
        f"{small} * {large} = {small * large}, and {small} is smaller than {large}.",
    )


def square_root(chance: random.Random, low: int, high: int) -> Made:
    """The number from `low` to `high` with a given square."""
    root = chance.randint(low, high)
    return (
        f"Which positive whole number has the square {root * root}?",
        str(root),
        f"{root} * {root} = {root * root}.",
    )


def division(chance: random.Random, low: int, high: int) -> Made:
    """An exact division; quotient and divisor are from `low` to `high`."""
    divisor, quotient = chance.randint(low, high), chance.randint(low, high)
    return (
        f"What is {divisor * quotient} divided by {divisor}?",
        str(quotient),
        f"{divisor} * {quotient} = {divisor * quotient}.",
    )


def linear_equation(chance: random.Random, low: int, high: int) -> Made:
    """a x + b = c with all numbers from `low` to `high`."""
    a, x, b = (chance.randint(low, high) for _ in range(3))
    return (
        f"Which number x solves {a}*x + {b} = {a * x + b}?",
        str(x),
        f"{a} * {x} = {a * x}. {a * x} + {b} = {a * x + b}.",
    )


def quadratic_equation(chance: random.Random, low: int, high: int) -> Made:
    """x^2 + b x = c with a positive whole x."""
    x, b = chance.randint(low, high), chance.randint(2, low + 7)
    return (
        f"Which positive whole number x solves x^2 + {b}*x = {x * x + b * x}?",
        str(x),
        f"{x}^2 = {x * x}. {b} * {x} = {b * x}. {x * x} + {b * x} = {x * x + b * x}.",
    )


def sum_and_product(chance: random.Random, low: int, high: int) -> Made:
    """The smaller of two numbers with a given sum and product."""
    small, large = sorted(chance.sample(range(low, high + 1), 2))
    return (
        f"Two numbers have the sum {small + large} and the product {small * large}. What is the smaller one?",
        str(small),
        f"{small} + {large} = {small + large}, and {small} * {large} = {small * large}.",
    )


def animals(chance: random.Random, low: int, high: int) -> Made:
    """Heads and legs of chickens and rabbits."""
    chickens, rabbits = chance.randint(low, high), chance.randint(low, high)
    heads, legs = chickens + rabbits, 2 * chickens + 4 * rabbits
    return (
        f"A farm has chickens and rabbits, with {heads} heads and {legs} legs in all. How many rabbits are there?",
        str(rabbits),
        f"{rabbits} rabbits have {4 * rabbits} legs. {heads} - {rabbits} = {chickens} chickens have {2 * chickens} "
        f"legs. {4 * rabbits} + {2 * chickens} = {legs}.",
    )


def remainders(chance: random.Random, first: int, second: int) -> Made:
    """The number below `first` * `second`, which have no common divisor, with given remainders."""
    number = chance.randint(second + 1, first * second - 1)
    return (
        f"Which positive whole number below {first * second} leaves the remainder {number % first} when it is divided "
        f"by {first}, and {number % second} when it is divided by {second}?",
        str(number),
        f"{number} = {first} * {number // first} + {number % first}. "
        f"{number} = {second} * {number // second} + {number % second}.",
    )


def subset_sum(chance: random.Random, count: int, size: int) -> Made:
    """The only `size` of `count` numbers up to 99 with a given sum, in increasing order."""
    while True:
        numbers = chance.sample(range(10, 100), count)
        chosen = sorted(numbers[:size])
        if sum(sum(other) == sum(chosen) for other in itertools.combinations(numbers, size)) == 1:
            break
    chance.shuffle(numbers)
    listed = ", ".join(map(str, chosen))
    return (
        f"Which {size} of the numbers {', '.join(map(str, numbers))} have the sum {sum(chosen)}? "
        "Give them in increasing order, separated by commas.",
        listed,
        f"{' + '.join(map(str, chosen))} = {sum(chosen)}.",
    )


def anagram(chance: random.Random, letters: int, _: int) -> Made:
    """A common word from its shuffled letters, which no other word has."""
    word = chance.choice(_story_words(letters))
    shuffled = list(word)
    while "".join(shuffled) == word:
        chance.shuffle(shuffled)
    return (
        f"Which English word has exactly the letters {' '.join(shuffled)}?",
        word,
        f"The letters of {word} are {' '.join(word)}. Sorted, they are {' '.join(sorted(word))}.",
    )


def caesar(chance: random.Random, letters: int, shift: int) -> Made:
    """A word of 3 to 5 letters, each moved forward by `shift` places; with spaces, so that a letter is a token."""
    word = chance.choice(_puzzle_words(letters))
    moved, solution = _code(word, shift, string.ascii_lowercase, " -> ")
    return (
        f"Each letter of an English word was moved forward by {shift} in the alphabet, which gave {' '.join(moved)}. "
        "What is the word?",
        word,
        solution,
    )


def digit_code(chance: random.Random, low: int, high: int) -> Made:
    """A number of three digits, each moved forward by `low` to `high` places, 0 after 9."""
    number, shift = str(chance.randint(100, 999)), chance.randint(low, high)
    moved, solution = _code(number, shift, string.digits, "->")
    return (
        f"Each digit of a number was moved forward by {shift}, with 0 after 9, which gave {moved}. What is the number?",
        number,
        solution,
    )


def _code(plain: str, shift: int, signs: str, arrow: str) -> tuple[str, str]:
    """`plain` with each sign moved forward by `shift` places in `signs`, and the solution that moves them back."""
    moved = "".join(signs[(signs.index(sign) + shift) % len(signs)] for sign in plain)
    pairs = ", ".join(f"{a}{arrow}{b}" for a, b in zip(moved, plain, strict=True))
    return moved, f"Back by {shift}: {pairs}."


@cache
def _puzzle_words(letters: int) -> list[str]:
    """Lower-case words of reasoning-gym's list for word ladders."""
    from reasoning_gym.data import read_data_file

    table = csv.DictReader(read_data_file("words.csv").splitlines())
    return sorted({row[f"{letters}_letter"].lower() for row in table} - {""})


@cache
def _story_words(letters: int) -> list[str]:
    """Lower-case words of a short story (Verne, In the Year 2889), without those that have an anagram."""
    from reasoning_gym.data import read_data_file

    story = re.findall(r"\b[a-z]+\b", read_data_file("in_the_year_2889.txt"))
    known = {word.lower() for word in read_data_file("words3to10.txt").split()}
    spelled = Counter("".join(sorted(word)) for word in known | set(story))
    return sorted(word for word in set(story) if len(word) == letters and spelled["".join(sorted(word))] == 1)


MAKERS: dict[str, Callable[[random.Random, int, int], Made]] = {
    maker.__name__: maker
    for maker in (
        factors, square_root, division, linear_equation, quadratic_equation, sum_and_product, animals, remainders,
        subset_sum, anagram, caesar, digit_code,
    )
}  # fmt: skip
WORDS = ("anagram", "caesar")
"""Tasks whose problems with the same answer ask for the same word."""
