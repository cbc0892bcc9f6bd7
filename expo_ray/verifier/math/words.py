"""Answers that are words: names, yes and no, choice letters, numbers in words, and a few fixed phrases."""

import re
from fractions import Fraction

from expo_ray.verifier.math.number import from_words

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_ORDINAL = re.compile(r"(?<![0-9.])([0-9]+) ?(?:st|nd|rd|th)\b")
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
    return _ORDINAL.sub(r"\1", re.sub(r"\s+", " ", _TEXT.sub(r"\1", text)).strip(' .,;:"'))


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
    if match is None:
        return None
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
