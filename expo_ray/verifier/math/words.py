"""Numbers in digits and in words, and answers that are words: names, yes and no, choice letters, fixed phrases."""

import re
from fractions import Fraction

MAX_ANSWER = 2000
"""Characters of an answer that is parsed; a longer one can only be right by being the gold answer's text."""
MAX_DEPTH = 40
"""Nested brackets of an answer that is parsed."""
MAX_EXPONENT = 20_000
"""Largest exponent, factorial argument and the like that is evaluated."""


class NotDecided(Exception):
    """The comparison would cost more than it may: the outcome is `error`, not `wrong`."""


_DECIMAL = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_PLAIN = re.compile(rf"(?:{_DECIMAL})")
_FRACTION = re.compile(rf"(?:\\frac\{{([+-]?(?:{_DECIMAL}))\}}\{{([+-]?(?:{_DECIMAL}))\}}|({_DECIMAL})/({_DECIMAL}))")
_MIXED = re.compile(r"([0-9]+) ?(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|(?<= )([0-9]+)/([0-9]+))")
_SCIENTIFIC = re.compile(rf"({_DECIMAL})(?:\\cdot ?10\^\{{([+-]?[0-9]+)\}}|[eE]([+-]?[0-9]+))")
_POWER_OF_TEN = re.compile(r"10\^\{([+-]?[0-9]+)\}")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}")
MAX_DIGITS = 400


def rational(text: str) -> Fraction | None:
    r"""The value of a cleaned number (integer, decimal, fraction, mixed, scientific, repeating); None if it is none.

    >>> rational(r"-1\frac{1}{2}")
    Fraction(-3, 2)

    Raises:
        NotDecided: an exponent beyond MAX_EXPONENT.
    """
    if len(text) > MAX_DIGITS:
        return None
    sign = 1
    while text[:1] in ("+", "-") and text:
        sign = -sign if text[0] == "-" else sign
        text = text[1:].lstrip()
    text = _without_outer(text)
    value = _unsigned(text)
    return None if value is None else sign * value


def _unsigned(text: str) -> Fraction | None:
    if _PLAIN.fullmatch(text):
        return Fraction(text.rstrip(".") if text.endswith(".") else text)
    if match := _FRACTION.fullmatch(text):
        top, bottom = (match.group(1), match.group(2)) if match.group(1) else (match.group(3), match.group(4))
        return Fraction(top) / Fraction(bottom) if Fraction(bottom) else None
    if match := _MIXED.fullmatch(text):
        above, below = (int(part) for part in match.groups()[1:] if part is not None)
        return int(match.group(1)) + Fraction(above, below) if 0 < above < below else None
    if match := _SCIENTIFIC.fullmatch(text):
        return Fraction(match.group(1)) * _ten_to(match.group(2) or match.group(3))
    if match := _POWER_OF_TEN.fullmatch(text):
        return _ten_to(match.group(1))
    if match := _REPEATING.fullmatch(text):
        whole, fixed, cycle = match.groups()
        head = Fraction(int((whole + fixed) or "0"), 10 ** len(fixed))
        return head + Fraction(int(cycle), 10 ** len(fixed) * (10 ** len(cycle) - 1))
    return None


def _ten_to(exponent: str) -> Fraction:
    if len(exponent) > 9 or abs(int(exponent)) > MAX_EXPONENT:
        raise NotDecided("exponent too large")
    return Fraction(10) ** int(exponent)


def _without_outer(text: str) -> str:
    """`(5)` and `{5}` are 5."""
    while len(text) > 2 and (text[0], text[-1]) in (("(", ")"), ("{", "}")) and not set(text[1:-1]) & set("(){}"):
        text = text[1:-1]
    return text


_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_SMALL = {word: value for value, word in enumerate((_ONES + " seventeen eighteen nineteen").split())}
_TENS = {
    word: 20 + 10 * index
    for index, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"])
}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PLAIN_WORDS = _SMALL | _TENS | _SCALES
_IRREGULAR = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS = {
    _IRREGULAR.get(w, re.sub("ve$", "f", re.sub("y$", "ie", w)) + "th"): n for w, n in _PLAIN_WORDS.items() if n
}
_PARTS = _ORDINALS | {"half": 2, "halve": 2, "quarter": 4}
_DIGITS = re.compile(rf"(?:{_DECIMAL})")


def from_words(text: str) -> Fraction | None:
    """The value of a number in English words; None where any word is none of a number's.

    Words and digits may be mixed: "twenty-one", "2 hundred fifty", "7.5 million", "three eighths", "fifth" (5).
    """
    words = text.lower().replace("-", " ").split()
    sign = -1 if words[:1] in (["negative"], ["minus"]) else 1
    words = [word for word in words[sign < 0 :] if word != "and"]
    if not words or len(words) > 8:
        return None
    last = words[-1]
    count = words[:-1] if words[-2:-1] != ["a"] else [*words[:-2], "one"]
    size = _PARTS.get(last) or (_PARTS.get(last[:-1]) if last.endswith("s") and count else None)
    if size is None or (last in ("second", "seconds") and count):
        value = _cardinal(words)
    elif last in ("half", "quarter") and not count:
        value = Fraction(1, size)
    elif not count:
        value = Fraction(size)
    elif count[-1] in _TENS and size < 10 and not last.endswith("s"):
        value = _cardinal([*count, *(word for word, number in _SMALL.items() if number == size)])
    else:
        above = _cardinal(count)
        value = None if above is None else above / size
    return None if value is None else sign * value


def _cardinal(words: list[str]) -> Fraction | None:
    total = current = Fraction(0)
    previous = ""
    for word in words:
        if word in _SMALL or _DIGITS.fullmatch(word):
            size = Fraction(_SMALL[word] if word in _SMALL else word.rstrip("."))
            # "two three" is no number, "twenty three" is.
            if previous == "small" or (previous == "tens" and not 0 < size < 10):
                return None
            current += size
            previous = "small"
        elif word in _TENS:
            if previous in ("small", "tens"):
                return None
            current += _TENS[word]
            previous = "tens"
        elif word in _SCALES:
            if not current:
                return None
            current *= _SCALES[word]
            if _SCALES[word] > 100:
                total, current = total + current, Fraction(0)
            previous = "scale"
        else:
            return None
    return total + current


_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_ORDINAL_ENDING = re.compile(r"(?<![0-9.])([0-9]+) ?(?:st|nd|rd|th)\b")
_CHOICE = re.compile(r"\(?([A-Z])\)?[.):]?")
_LETTERS = re.compile(r"\\text\{ ?[A-Z](?:(?: ?, ?(?:and |or )?| and | or )[A-Z])+ ?\}")
_OPTION = re.compile(r"(?:the )?(?:option|choice|answer) \(?([A-J])\)?", re.IGNORECASE)
_LABEL = re.compile(
    r"(?:\\text\{ ?)?(?:\(([A-J])\)|([A-J])[):.]) ?(?:\\text\{(?=.*\}$)|(\}))? ?(.*[0-9A-Za-z].*)", re.DOTALL
)
_SHOUTED = {"YES", "NO", "TRUE", "ODD", "EVEN", "NONE"}
_PHRASES = {
    **dict.fromkeys(("allrealnumbers", "allreals", r"\mathbb{R}", "R"), r"(-\infty,\infty)"),
    **dict.fromkeys((r"\mathbb{R}^{+}", r"\mathbb{R}_{+}", "allpositiverealnumbers"), r"(0,\infty)"),
    r"\mathbb{R}^{-}": r"(-\infty,0)",
    **dict.fromkeys((r"\{\}", "emptyset", "theemptyset", "nosolution", "nosolutions"), r"\emptyset"),
    "infinity": r"\infty",
}


def plain(text: str) -> str:
    r"""The words of a text without `\text{}`, the ending of 21st, and spaces and quotes at its ends."""
    return _ORDINAL_ENDING.sub(r"\1", re.sub(r"\s+", " ", _TEXT.sub(r"\1", text)).strip(' .,;:"'))


def canonical(text: str) -> str:
    """Fixed phrases as the formula that they name; everything else as it is."""
    if _LETTERS.fullmatch(text):
        return plain(text)
    option = _OPTION.fullmatch(plain(text))
    if option:
        return option.group(1)
    head, sign, rest = text.partition("\\in")
    if sign and not rest[:1].isalpha():
        return head + sign + canonical(rest)
    key = re.sub(r"\s|^there (?:is|are) ", "", _TEXT.sub(r"\1", text).strip(), flags=re.IGNORECASE)
    return _PHRASES.get(key, _PHRASES.get(key.lower(), text)) if text != "R" else text


def label(text: str) -> tuple[str, str] | None:
    r"""A choice's letter and its text: `\text{(C) }42`, `C) 12`, `C: 12`; None for anything else."""
    match = _LABEL.fullmatch(text)
    if match is None or re.search(r"\([A-J]\)|(?<![A-Za-z])[A-J][):.]", match.group(4)):
        return None  # several choices are none
    rest = match.group(4)
    inside = text.startswith("\\text") and match.group(3) is None
    return match.group(1) or match.group(2), (rest[:-1] if inside and rest.endswith("}") else rest).strip()


def number(text: str) -> Fraction | None:
    """The value of a number in words; None for anything else."""
    found = plain(text)
    return from_words(found) if re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9. -]*", found) else None


def same(answer: str, gold: str) -> bool:
    """Whether two texts are the same words; a letter's case counts only where the letter stands alone."""
    first, second = plain(answer), plain(gold)
    choices = _CHOICE.fullmatch(first), _CHOICE.fullmatch(second)
    if choices[0] and choices[1]:
        return choices[0].group(1) == choices[1].group(1)
    if first == second:
        return bool(first)
    if any(text.isupper() and len(text) < 5 and text not in _SHOUTED for text in (first, second)):
        return False
    left, right = _folded(first), _folded(second)
    return (left == right and len(left) > 2) or {left, right} == {"no"}


def _folded(text: str) -> str:
    text = re.sub(r"^(?:the|an|a) (?=[A-Za-z]{2})", "", text.lower())
    if re.search(r"[\\^_=+]", text):
        return text
    return re.sub(r"(?<=[a-z]{4})(?<!s)s\b", "", re.sub(r"[\s-]+", " ", text)).strip()
