"""Quantities: a value with a unit, money, percent or degrees behind or before it."""

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """What is measured, in which size, to which power. Equal units have equal fields."""

    dimension: str
    factor: Fraction = Fraction(1)
    power: int = 1


@dataclass(frozen=True, slots=True)
class Quantity:
    """`value` is the cleaned text without its unit; `scale` multiplies it ("5 million")."""

    value: str
    unit: Unit | None
    scale: int = 1


def _table() -> dict[str, Unit]:
    lengths = {"mm": (1, 1000), "cm": (1, 100), "dm": (1, 10), "m": (1, 1), "km": (1000, 1), "in": (254, 10000)}
    lengths |= {"ft": (3048, 10000), "yd": (9144, 10000), "mi": (1609344, 1000)}
    names = {
        "millimeter millimetre": "mm", "centimeter centimetre": "cm", "decimeter": "dm", "meter metre": "m",
        "kilometer kilometre": "km", "inch inches": "in", "foot feet": "ft", "yard": "yd", "mile": "mi",
    }  # fmt: skip
    table = {name: Unit("length", Fraction(*size)) for name, size in lengths.items()}
    for words, short in names.items():
        table |= dict.fromkeys(words.split(), table[short])
    for words, dimension, size in (
        ("mg milligram", "mass", Fraction(1, 1000)), ("g gram gm", "mass", Fraction(1)),
        ("kg kilogram", "mass", Fraction(1000)), ("ton tonne", "ton", Fraction(1)),
        ("lb pound", "weight", Fraction(16)), ("oz ounce", "weight", Fraction(1)),
        ("ml milliliter millilitre", "volume", Fraction(1, 1000)),
        ("l liter litre", "volume", Fraction(1)), ("gal gallon", "liquid", Fraction(4)),
        ("qt quart", "liquid", Fraction(1)), ("pt pint", "liquid", Fraction(1, 2)), ("cup", "liquid", Fraction(1, 4)),
        ("s sec second", "time", Fraction(1)), ("min minute", "time", Fraction(60)),
        ("h hr hour", "time", Fraction(3600)), ("day", "time", Fraction(86400)), ("week", "time", Fraction(604800)),
        ("month", "month", Fraction(1)), ("yr year", "month", Fraction(12)),
        ("dollar usd buck", "usd", Fraction(1)), ("cent", "usd", Fraction(1, 100)), ("euro", "euro", Fraction(1)),
        ("rupee rs", "rupee", Fraction(1)), ("degree deg", "degree", Fraction(1)),
        ("radian rad", "radian", Fraction(1)),
        ("unit", "unit", Fraction(1)),
        ("mph", "length/time", Fraction(1609344, 3600000)),
        ("kph kmph", "length/time", Fraction(1000, 3600)),
    ):  # fmt: skip
        table |= dict.fromkeys(words.split(), Unit(dimension, size))
    return table


TABLE = _table()
DEGREE = TABLE["degree"]
RADIAN = TABLE["radian"]
PERCENT = Unit("percent", Fraction(1, 100))

_SCALE_WORDS = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Words that change what the number says; with one of them nothing is a unit that may be left out.
_NOT_UNITS = (
    "more less fewer least most remainder r mod not no off squared cubed half halves third quarter fifth tenth "
    "hundredth thousandth plus minus times negative positive or and to between about approximately than over under "
    "above below up down north south east west left right i e x y z base percentage point factorial if when for mixed "
    "am pm a.m. p.m. a.m p.m noon midnight ago later late early gain loss profit debt deficit increase decrease"
)
_NO_UNIT = {*_NOT_UNITS.split(), *_SCALE_WORDS}
_TAIL = re.compile(
    r"(?P<value>.*?[0-9}\)a-z])(?P<degree>\\degree)?"
    r"(?: *\\text\{(?P<text>[^{}]*)\}|(?P<bare> [A-Za-z][A-Za-z. /]*|(?<![A-Za-z\\])[A-Za-z][A-Za-z. /]*))"
    r"(?:\^\{(?P<power>[23])\})?",
    re.DOTALL,
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)")
_SHORT = {"m", "g", "l", "s", "h", "L"}


def quantity(text: str) -> Quantity:
    r"""Split a cleaned answer into its value and unit; the unit is None where there is none or it is not one.

    >>> quantity(r"5\text{ square feet}").unit.power
    2
    """
    if text.endswith("\\%"):
        return Quantity(text[:-2].strip(), PERCENT)
    if text.endswith("\\degree") and not _TRIGONOMETRY.search(text):
        return Quantity(text[: -len("\\degree")].strip(), DEGREE)
    match = re.fullmatch(r"([+-]?)\\\$ ?([+-]?.+)", text)
    if match:
        inner = quantity(match.group(1) + match.group(2))
        if inner.unit is None or inner.unit == TABLE["dollar"]:
            return Quantity(inner.value, TABLE["dollar"], inner.scale)
        return Quantity(text, None)
    if text.endswith("\\$"):
        return Quantity(text[:-2].strip(), TABLE["dollar"])
    match = _TAIL.fullmatch(text)
    if match is None:
        return Quantity(text, None)
    return _from_tail(match) or Quantity(text, None)


def _from_tail(match: re.Match[str]) -> Quantity | None:
    value, bare = match.group("value"), match.group("bare")
    words = (match.group("text") if bare is None else bare).strip()
    if bare is not None and not _bare_is_unit(value, bare, words):
        return None
    scale = 1
    first, _space, rest = words.partition(" ")
    if first.lower() in _SCALE_WORDS:
        scale, words = _SCALE_WORDS[first.lower()], rest.strip()
        if not words:
            return Quantity(value, None, scale)
    unit = _degree_scale(match, words) if match.group("degree") else _unit(words, int(match.group("power") or 1))
    return None if unit is None else Quantity(value, unit, scale)


def _bare_is_unit(value: str, bare: str, words: str) -> bool:
    """Letters without `\\text` are a unit only behind a number, and a single letter only behind a space."""
    if not re.search(r"[0-9})]$", value) or re.search(r"(?<!\\pi)[A-Za-z](?<!frac)(?<!sqrt)$", value):
        return False
    if re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", value)):
        return False
    if len(words) == 1:
        return bare.startswith(" ") and words in _SHORT
    return _unit(words, 1) is not None and (bare.startswith(" ") or words.lower().rstrip("s.") in TABLE)


def _degree_scale(match: re.Match[str], words: str) -> Unit | None:
    name = {"f": "fahrenheit", "c": "celsius"}.get(words.strip(". ").lower(), words.strip(". ").lower())
    return Unit(name) if name in ("fahrenheit", "celsius") and not match.group("power") else None


def _unit(words: str, power: int) -> Unit | None:
    """The unit that a phrase names; None where leaving it out could change the meaning."""
    phrase = re.sub(r"\s+", " ", words.replace("\\%", "%")).strip(" .,")
    lowered = phrase.lower()
    if not re.fullmatch(r"[a-z][a-z .'/-]*", lowered):
        return None
    for prefix, size in (("square", 2), ("sq.", 2), ("sq", 2), ("cubic", 3), ("cu.", 3), ("cu", 3)):
        if lowered.startswith(prefix + " "):
            lowered, power = lowered[len(prefix) :].strip(), power * size
    rate = re.split(r"\s*/\s*|\s+per\s+(?:an?\s+)?|\s+an\s+", lowered)
    if len(rate) == 2 and all(rate):
        top, bottom = _unit(rate[0], 1), _unit(rate[1], 1)
        if top is None or bottom is None:
            return None
        return Unit(f"{top.dimension}/{bottom.dimension}", top.factor / bottom.factor, power)
    known = TABLE.get(lowered.rstrip(".")) or TABLE.get(re.sub(r"s$", "", lowered.rstrip(".")))
    if known is not None:
        return Unit(known.dimension, known.factor**power, power)
    words_of = lowered.replace("-", " ").split()
    if len(words_of) > 3 or any(len(w) < 3 or {w, w.removesuffix("s")} & _NO_UNIT for w in words_of):
        return None
    return Unit(re.sub(r"s$", "", lowered), Fraction(1), power)
