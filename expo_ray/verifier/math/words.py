"""Numbers in digits and in words, and answers that are words: names, yes and no, choice letters, fixed phrases."""

import re
import tomllib
from fractions import Fraction
from pathlib import Path

NOTATION = tomllib.loads((Path(__file__).parent / "notation.toml").read_text(encoding="utf-8"))

_REWRITES = {
    step: [(re.compile(pattern, re.DOTALL), plain) for pattern, plain in rules]
    for step, rules in NOTATION["rewrites"].items()
}


def rewritten(step: str, text: str) -> str:
    """The text after the rules of one table of notation.toml."""
    for pattern, plain in _REWRITES[step]:
        text = pattern.sub(plain, text)
    return text


MAX_ANSWER = 2000
"""Characters of an answer that is parsed; a longer one can only be right by being the gold answer's text."""
MAX_DEPTH = 40
"""Nested brackets of an answer that is parsed."""


class NotDecided(Exception):
    """The comparison would cost more than it may: the outcome is `error`, not `wrong`."""


_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"


def repeating(whole: str, fixed: str, cycle: str) -> Fraction:
    """The value of a decimal whose last digits repeat, from its digits."""
    return (int(whole + fixed or "0") + Fraction(int(cycle), 10 ** len(cycle) - 1)) / 10 ** len(fixed)


_NAMES = NOTATION["numbers"]
_SMALL = {word: value for value, word in enumerate(_NAMES["small"].split())}
_TENS = {word: 10 * value for value, word in enumerate(_NAMES["tens"].split(), start=2)}
_SCALES: dict[str, int] = _NAMES["scales"]
_ORDINALS = {
    _NAMES["irregular"].get(word, re.sub("ve$", "f", re.sub("y$", "ie", word)) + "th"): value
    for word, value in (_SMALL | _TENS | _SCALES).items()
    if value
}
_PARTS = _ORDINALS | {"half": 2, "halve": 2, "quarter": 4}


def from_words(text: str) -> Fraction | None:
    """The value of a number in English words; None where any word is none of a number's.

    Words and digits may be mixed: "twenty-one", "2 hundred fifty", "7.5 million", "three eighths", "fifth" (5).
    """
    words = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text.lower()).split()
    sign = -1 if words[:1] in (["negative"], ["minus"]) else 1
    words = [word for word in words[sign < 0 :] if word != "and"]
    if not words or len(words) > 8:
        return None
    last = words[-1]
    count = words[:-1] if words[-2:-1] != ["a"] else [*words[:-2], "one"]
    size = _PARTS.get(last) or (_PARTS.get(last[:-1]) if last.endswith("s") and count else None)
    if size is None or (last in ("second", "seconds") and count):
        value = _cardinal(words)
    elif not count:
        value = Fraction(1, size) if last in ("half", "quarter") else Fraction(size)
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
        if word in _SCALES:
            if not current:
                return None
            current *= _SCALES[word]
            if _SCALES[word] > 100:
                total, current = total + current, Fraction(0)
            previous = "scale"
        elif word in _TENS and previous in ("", "scale"):
            current += _TENS[word]
            previous = "tens"
        elif word in _SMALL or re.fullmatch(_DECIMAL, word):
            size = Fraction(_SMALL.get(word, word.rstrip(".")))
            # "two three" is no number, "twenty three" is.
            if previous == "small" or (previous == "tens" and not 0 < size < 10):
                return None
            current += size
            previous = "small"
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
_JOINED = re.compile(
    r"(?:\\text\{)?\W*(?:or|and|nor|but|not|vs|maybe|if|half|wrong|except)\b|[-+=<>,;/|^!0]"
    r"|\\(?:cup|cap|lor|land|ne|le|ge|pi|quad|to|Rightarrow|implies)(?![A-Za-z])"
)
_SHOUTED = {"YES", "NO", "TRUE", "ODD", "EVEN", "NONE"}
_PHRASES = {phrase: formula for formula, phrases in NOTATION["phrases"].items() for phrase in phrases.split()}


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
    return _PHRASES.get(key, _PHRASES.get(key.lower(), text))


def label(text: str) -> tuple[str, str] | None:
    r"""A choice's letter and its text: `\text{(C) }42`, `C) 12`, `C: 12`; None for anything else."""
    match = _LABEL.fullmatch(text)
    if (
        match is None
        or re.search(r"\([A-J]\)|(?<![A-Za-z])[A-J][):.]", match.group(4))
        or _JOINED.match(match.group(4))
    ):
        return None  # several choices are none, nor is one with more behind it than its text
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
    text = re.sub(r"(?<=[a-z]{2})[\s-]+(?=[a-z]{2})", " ", text)
    return re.sub(r"(?<=[a-z]{4})(?<!s)s\b", "", text).strip()
