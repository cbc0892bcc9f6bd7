r"""Quantities: a value with money, percent, degrees, a unit or counted things behind or before it."""

import re
from dataclasses import dataclass
from fractions import Fraction

from expo_ray.verifier.math.value import rational
from expo_ray.verifier.math.words import NOTATION, from_words, rewritten


@dataclass(frozen=True, slots=True)
class Unit:
    """What is measured, in which size, to which power. Equal units have equal fields."""

    dimension: str
    factor: Fraction = Fraction(1)
    power: int = 1


@dataclass(frozen=True, slots=True)
class Quantity:
    """`value` is the cleaned text of the number without its unit."""

    value: str
    unit: Unit | None


_COUNTED = frozenset(NOTATION["counted"]["things"].split())
_ADJECTIVES = frozenset(NOTATION["counted"]["adjectives"].split())
_TAIL = re.compile(
    r"(?P<value>[+-]?.*?[0-9}\)a-z!])(?P<degree>\\degree)?"
    r"(?P<words> ?\(?\\text\{[^{}]*\}.*|\([a-z ]{3,}\)"
    r"| [A-Za-z(][A-Za-z. /()^{}0-9-]*|(?<![A-Za-z\\])[A-Za-z][A-Za-z. /]*)",
    re.DOTALL,
)
_OF_THINGS = re.compile(r" (?:of|in|on|for|from|with|left|in total|altogether|long|tall|old|each)( [A-Za-z ]*)?$")
_OF_WHAT = r" ?\\text\{ ?(?:increase|decrease|discount|profit|gain|loss|chance|interest|off|of [a-z ]+) ?\}$"
_SHORT = frozenset(["m", "g", "l", "s", "h", "L", "N", "J", "W", "V", "K"])
_PART = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)? *(?P<unit>[A-Za-z.一-鿿-]+(?: of [a-z]+)?)")


def _sizes(text: str) -> list[tuple[str, Fraction]]:
    return [(name, Fraction(size)) for name, size in (entry.split("=") for entry in text.split())]


def _table() -> dict[str, Unit]:
    table: dict[str, Unit] = {}
    prefixes = {form: _sizes(text) for form, text in NOTATION["prefixes"].items()}
    for dimension, entries in NOTATION["units"].items():
        for entry, size in _sizes(entries):
            name = entry.rstrip("*")
            table[name] = Unit(dimension, size)
            for prefix, factor in prefixes["long" if len(name) > 2 else "short"] if name != entry else ():
                table.setdefault(prefix + name, Unit(dimension, size * factor))
    return table


TABLE = _table()
DEGREE, RADIAN, DOLLAR = TABLE["degree"], TABLE["radian"], TABLE["dollar"]
PERCENT = Unit("percent", Fraction(1, 100))


def quantity(text: str, any_plural: bool = False) -> Quantity:
    r"""Split a cleaned answer into its value and unit; the unit is None where there is none or it is not one.

    any_plural: any noun in the plural may be what is counted; meant for gold answers, which nobody games.

    >>> quantity(r"5\text{ square feet}").unit.power
    2
    """
    text = re.sub(r"(?<=[0-9])\\Omega$", r"\\text{ ohm}", re.sub(r"\\%" + _OF_WHAT, r"\\%", text))
    if text.endswith("\\%"):
        return Quantity(text[:-2].strip(), PERCENT)
    modulus = re.fullmatch(r"(.+?)\(?\\pmod\{([1-9A-Za-z][^{}]*)\}\)?", text)
    if modulus and not (modulus[1].isdigit() and modulus[2].isdigit() and int(modulus[1]) >= int(modulus[2])):
        return Quantity(modulus.group(1).strip(), Unit("mod " + modulus.group(2)))
    if text.endswith("\\degree") and not re.search(r"\\(?:sin|cos|tan|sec|csc|cot|cis)", text):
        return Quantity(text[: -len("\\degree")].strip(), DEGREE)
    match = re.fullmatch(r"([+-]?)\\\$ ?([+-]?.+)|(.+)\\\$", text)
    if match:
        inner = quantity((match.group(1) or "") + (match.group(2) or match.group(3)))
        return Quantity(inner.value, DOLLAR) if inner.unit in (None, DOLLAR) else Quantity(text, None)
    match = _TAIL.fullmatch(text)
    return (_from_tail(match, any_plural) if match else None) or Quantity(text, None)


def _from_tail(match: re.Match[str], any_plural: bool) -> Quantity | None:
    value, tail = match["value"], match["words"]
    words = re.sub(r"\\text\{([^{}]*)\}", r"\1", tail).replace("^{", "^").replace("}", "").strip(" .,")
    words = re.sub(r"^\((.*)\)$|\(s\)", r"\1", words).strip()
    if "\\text" not in tail and not _bare_is_unit(value, tail, words):
        return None
    scale = words.lower().strip(". ").removeprefix("degrees ")
    if match["degree"] or len(scale) > 1:
        scale = {"f": "fahrenheit", "c": "celsius"}.get(scale, scale)
        if match["degree"] or scale in ("fahrenheit", "celsius"):
            return Quantity(value, Unit(scale)) if scale in ("fahrenheit", "celsius") else None
    plain = words.replace("-", " ").split()
    for count in range(min(len(plain), 6), 0, -1):
        scaled = from_words(" ".join([value, *plain[:count]])) if rational(value) is not None else None
        if scaled is not None:
            unit = unit_of(" ".join(plain[count:]), any_plural) if plain[count:] else None
            return None if plain[count:] and unit is None else Quantity(_fraction(scaled), unit)
    unit = unit_of(words, any_plural)
    return _compound(f"{value} {re.sub(r',? and |,', ' ', words)}") if unit is None else Quantity(value, unit)


def _fraction(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _compound(text: str) -> Quantity | None:
    """`2 hours 30 minutes` in hours: parts of one dimension, each smaller than the one before."""
    parts = list(_PART.finditer(text))
    units = [unit for part in parts if (unit := unit_of(part["unit"], False)) is not None and part["number"]]
    if _PART.sub("", text).strip(" ") or not 2 <= len(parts) == len(units):
        return None
    if len({(unit.dimension, unit.power) for unit in units}) > 1 or sorted(units, key=lambda u: -u.factor) != units:
        return None
    total = sum(Fraction(part["number"]) * unit.factor for part, unit in zip(parts, units, strict=True))
    return Quantity(_fraction(total / units[0].factor), units[0])


def _bare_is_unit(value: str, bare: str, words: str) -> bool:
    r"""Letters without `\text` are a unit only behind a number, and a single letter only behind a space."""
    if not re.search(r"(?:[0-9})]|\\pi)$", value) or re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", value)):
        return False
    if len(words) == 1:
        return bare.startswith(" ") and words in _SHORT
    return bare[0] in " (" or re.sub(r"s?\.?$", "", words.lower()) in TABLE


def unit_of(words: str, any_plural: bool) -> Unit | None:
    """The unit or the counted things that a phrase names; None where it names neither."""
    phrase = rewritten("units", re.sub(r"\s+", " ", words).strip(" .,"))
    top, *bottom = re.split(r"\s*/\s*|\s+per\s+(?:an?\s+)?|\s+an?\s+", phrase)
    if len(bottom) == 1 and top and bottom[0]:
        over, under = unit_of(top, any_plural), unit_of(bottom[0], any_plural)
        if over is None or under is None:
            return None
        power = f"^{under.power}" if under.power > 1 else ""
        return Unit(f"{over.dimension}/{under.dimension}{power}", over.factor / under.factor, over.power)
    match = re.fullmatch(r"(.+?)(?:\s*\^\s*([23]))?", _OF_THINGS.sub("", phrase))
    if match is None:
        return None
    name, exponent = match[1], int(match[2] or 1)
    single = re.sub(r"(?<=[a-zA-Z]{2})s$", "", name.rstrip("."))
    forms = [name, single, *([name.rstrip(".").lower(), single.lower()] if len(name) > 2 else [])]
    known = next((TABLE[form] for form in forms if form in TABLE), None)
    if known is not None:
        return Unit(known.dimension, known.factor**exponent, exponent)
    return _counted(name.lower(), exponent, any_plural)


def _counted(phrase: str, power: int, any_plural: bool) -> Unit | None:
    *before, noun = phrase.split() or [""]
    if len(before) > 2 or not all(re.fullmatch(r"[a-z'-]+|[一-鿿]+", word) for word in (*before, noun)):
        return None
    named = {noun, re.sub("s$", "", noun), re.sub("es$", "", noun), re.sub("ies$", "y", noun)} & _COUNTED
    plural = any_plural and re.fullmatch(r"[a-z]{2,}[a-rt-z]s", noun) is not None and from_words(f"2 {noun}") is None
    if not named and not plural:
        return None
    if not all(word in _ADJECTIVES or any_plural or _counted(word, 1, False) for word in before):
        return None
    return Unit(min(named, key=len) if named and not before else phrase.removesuffix("s"), power=power)
