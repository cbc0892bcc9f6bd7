"""Answers that are words: names, yes and no, choice letters, numbers in words, and a few fixed phrases."""

import re

from expo_ray.verifier.math.number import from_words

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([A-Z])\)?[.):]?")
_LETTERS = re.compile(r"\\text\{ ?[A-Z](?:(?: ?, ?(?:and |or )?| and | or )[A-Z])+ ?\}")
_SHOUTED = {"YES", "NO", "TRUE", "ODD", "EVEN", "NONE"}
_PHRASES = {
    "allrealnumbers": r"(-\infty,\infty)",
    "allreals": r"(-\infty,\infty)",
    r"\mathbb{R}": r"(-\infty,\infty)",
    r"\{\}": r"\emptyset",
    "emptyset": r"\emptyset",
    "theemptyset": r"\emptyset",
}
_PRODUCT_LETTERS = set("abcdhkmnpqrtuvwxyz")


def plain(text: str) -> str:
    r"""The words of a text without `\text{}`, brackets around it and spaces at its ends."""
    return re.sub(r"\s+", " ", _TEXT.sub(r"\1", text)).strip(' .,;:"')


def canonical(text: str) -> str:
    """Fixed phrases as the formula that they name; everything else as it is."""
    if _LETTERS.fullmatch(text):
        return plain(text)
    key = re.sub(r"\s", "", _TEXT.sub(r"\1", text))
    return _PHRASES.get(key, _PHRASES.get(key.lower(), text))


def is_word(text: str) -> bool:
    r"""Whether a cleaned text is words or a choice, not mathematics: `\text{...}`, or letters only."""
    if "\\text" in text:
        return True
    if _CHOICE.fullmatch(text) and not text.isalpha():
        return True
    if not re.fullmatch(r"[A-Za-z][A-Za-z '.-]*", text) or len(text) == 1:
        return False
    if all(len(word) == 1 for word in text.split(" ")):
        return False
    return " " in text or len(text) > 4 or not set(text) <= _PRODUCT_LETTERS


def number(text: str) -> int | None:
    """The value of a number in words; None for anything else."""
    found = plain(text)
    return from_words(found) if re.fullmatch(r"[A-Za-z][A-Za-z -]*", found) else None


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
    if re.search(r"[\\0-9^_=+]", text):
        return text
    return re.sub(r"[\s-]+", " ", text).strip()
