"""Finds the phrase by which a text says that its answer was given to it. docs/algorithms/leaks.md has the measures."""

import re

from expo_ray.leaks.patterns import LEAKS

MAX_CHARACTERS = 200_000
"""Longer texts are searched up to here: model output must not decide how long the search takes."""

_PLAIN = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "*": " ", "_": " "})


def mentions_given_answer(text: str) -> str | None:
    """The first phrase of `text` that mentions a given answer ("since the answer is given"), or None.

    Letter case, line breaks, typographic quotes and Markdown emphasis make no difference; the phrase is returned in
    lower case with single spaces. A text that merely states an answer, or what its problem gives, is innocent.
    """
    plain = re.sub(r"\s+", " ", text[:MAX_CHARACTERS].translate(_PLAIN)).lower()
    found = [match for match in (pattern.search(plain) for pattern in LEAKS) if match]
    return min(found, key=lambda match: match.start()).group().strip() if found else None
