"""Finds where a completion states its final answer, and cuts its ids there."""

import re
from collections.abc import Callable

import numpy as np

from expo_ray.messages import IntArray

_STATEMENT = re.compile(r"(?i)\banswer(?:\s+\w+){0,3}?\s*(?:is|are|:|=)|####")
_SENTENCE_START = re.compile(r"(?<=[.!?])\s+|\n+")


def statement_start(text: str) -> int:
    """Character index where the sentence with the final answer begins; the text's length if there is none.

    The final answer is the last `\\boxed`; without one, the last "answer is", "answer:" or "####".
    """
    boxed = text.rfind("\\boxed")
    if boxed < 0:
        matches = list(_STATEMENT.finditer(text))
        if not matches:
            return len(text)
        boxed = matches[-1].start()
    starts = [match.end() for match in _SENTENCE_START.finditer(text, 0, boxed)]
    return starts[-1] if starts else 0


def toy_statement_start(text: str) -> int:
    """The same for the toy task, whose answer follows the last mark."""
    from expo_ray.world.running_totals import ANSWER_MARK

    mark = text.rfind(ANSWER_MARK)
    return mark if mark >= 0 else len(text)


def chain_before(ids: IntArray, decode: Callable[[list[int]], str], start_of: Callable[[str], int]) -> IntArray:
    """Returns the first ids of a completion: those that begin before its answer statement.

    White space before the statement does not count. Ids are never split or tokenised again: an id that begins before
    the statement and reaches into it is kept whole.
    """
    values = [int(i) for i in ids]
    text = decode(values)
    cut = len(text[: start_of(text)].rstrip())
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if len(decode(values[:middle])) >= cut:
            high = middle
        else:
            low = middle + 1
    return np.asarray(ids[:low], dtype=np.int32)
