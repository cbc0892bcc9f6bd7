"""The texts of all prompts, and where a completion states its answer.

`fill` inserts `{question}`, `{answer}` and `{solution}` verbatim.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from expo_ray.messages import IntArray

ASK_FOR_BOX = "Reason step by step, and put your final answer within \\boxed{}."
ASK_FOR_LETTER = "Reason step by step, and put only the letter of your choice within \\boxed{}."

ASK_FOR_CODE = "Reason step by step, and put the whole program into one block that begins with ```python."

CONDITIONED_REQUEST = (
    "The correct answer is {answer}.\n\n"
    "Write the full derivation that arrives at it. It must stand on its own: a reader who sees only the problem, "
    "and not this answer, has to be able to follow and check every step. So derive the answer from the problem, "
    "and do not write that an answer was given to you."
)


SOLUTION_REQUEST = (
    "Here is a correct solution to this problem:\n\n{solution}\n\n"
    "Understand each of its steps. Then solve the problem yourself, in your own words, without referring to it."
)


@dataclass(frozen=True, slots=True)
class Templates:
    """The texts of one style, before any chat template is applied."""

    free: str
    conditioned: str
    shown: str
    """Shows a solution instead of the answer."""
    answer_lead: str
    """Text that introduces the answer at the end of a completion."""
    answer_tail: str
    """Text that ends it, so that an answer is not scored as the prefix of a longer one."""
    answer_close: str
    """Text that completes the statement where it is trained on."""


CHAT = Templates(
    free="{question}",
    conditioned="{question}\n\n" + CONDITIONED_REQUEST,
    shown="{question}\n\n" + SOLUTION_REQUEST,
    answer_lead="\n\nThe final answer is $\\boxed{",
    answer_tail="}",
    answer_close="$.",
)
BASE = Templates(
    free="Problem:\n{question}\n\n{instruction}\n\nSolution:\n",
    conditioned="Problem:\n{question}\n\n{instruction} " + CONDITIONED_REQUEST + "\n\nSolution:\n",
    shown="Problem:\n{question}\n\n{instruction} " + SOLUTION_REQUEST + "\n\nSolution:\n",
    answer_lead=CHAT.answer_lead,
    answer_tail=CHAT.answer_tail,
    answer_close=CHAT.answer_close,
)


def instruction_for(task: str) -> str:
    """The requested form of the reply, by the task that verifies it (conf/verifier)."""
    return {"choice": ASK_FOR_LETTER, "python_tests": ASK_FOR_CODE}.get(task, ASK_FOR_BOX)


def fill(template: str, **values: str) -> str:
    """Replaces each `{name}` by its value, in a single pass: braces in a question or an answer have no effect."""
    return re.sub(r"\{(question|answer|solution|instruction)\}", lambda m: values[m.group(1)], template)


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
