"""The texts of all prompts, where a completion states its answer, and where a thought ends that comes before it.

`fill` inserts `{question}`, `{answer}` and `{solution}` verbatim. A thought stands between `<think>` and `</think>`.
Some chat templates begin it at the end of the prompt (DeepSeek-R1, Qwen3 Thinking), some close an empty one there if
thinking is switched off (Qwen3), and others leave it to the model.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from expo_ray.config.errors import did_you_mean
from expo_ray.messages import IntArray
from expo_ray.verifier.extract import THOUGHT_BEGINS, THOUGHT_ENDS

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


GUIDANCE = {
    "hint": "Hint: {text}",
    "beginning": (
        "Here is the beginning of a correct solution:\n\n{text}\n\n"
        "Continue from where it ends, and finish the solution. Build on its steps instead of starting again."
    ),
    "ask_hint": (
        "Here is a solution of this problem:\n\n{text}\n\n"
        "Write one short hint for somebody who could not solve the problem: the key idea or fact that is needed. Name "
        "neither the answer nor any intermediate result, and do not solve the problem."
    ),
}
"""What follows the question in prompts that tell more than it (PromptBuilder.guided)."""


@dataclass(frozen=True, slots=True)
class Templates:
    """The texts of one style, before any chat template is applied."""

    free: str
    conditioned: str
    shown: str
    """Shows a solution instead of the answer."""
    ask_hint: str
    """Asks for a hint, and for no answer."""
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
    ask_hint="{question}",
    answer_lead="\n\nThe final answer is $\\boxed{",
    answer_tail="}",
    answer_close="$.",
)
BASE = Templates(
    free="Problem:\n{question}\n\n{instruction}\n\nSolution:\n",
    conditioned="Problem:\n{question}\n\n{instruction} " + CONDITIONED_REQUEST + "\n\nSolution:\n",
    shown="Problem:\n{question}\n\n{instruction} " + SOLUTION_REQUEST + "\n\nSolution:\n",
    ask_hint="Problem:\n{question}\n\nHint:\n",
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

    The final answer is the last `\\boxed` behind any thought; without one, the last "answer is", "answer:" or "####".
    """
    begin = answer_start(text)
    boxed = text.rfind("\\boxed", begin)
    if boxed < 0:
        matches = list(_STATEMENT.finditer(text, begin))
        if not matches:
            return len(text)
        boxed = matches[-1].start()
    starts = [match.end() for match in _SENTENCE_START.finditer(text, begin, boxed)]
    return starts[-1] if starts else begin


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


CLOSED = f"\n{THOUGHT_ENDS}"
"""Ends a thought that is still open where an answer is to follow."""
_BEGUN = re.compile(rf"{THOUGHT_BEGINS}\s*\Z")
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_NOT_SETTINGS = ("messages", "add_generation_prompt", "raise_exception", "strftime_now")


def begun_thought(prompt: str) -> str:
    """The end of a rendered prompt that begins a thought, `<think>` with its white space; empty without one."""
    found = _BEGUN.search(prompt)
    return found.group() if found else ""


def is_open(text: str) -> bool:
    """Whether a text ends within a thought."""
    return text.rfind(THOUGHT_BEGINS) > text.rfind(THOUGHT_ENDS)


def answer_start(text: str) -> int:
    """Character index where the part begins that may hold the answer: behind the last thought, 0 without one. The
    text's length if it ends within a thought."""
    if is_open(text):
        return len(text)
    end = text.rfind(THOUGHT_ENDS)
    return 0 if end < 0 else end + len(THOUGHT_ENDS)


def after_thought(text: str) -> str:
    """The part that may hold the answer, without white space around it: empty if the text ends within a thought."""
    return text[answer_start(text) :].strip()


def decode_rows(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """Decodes ids without special tokens, but with the marks of a thought, which are special tokens of some models."""
    special = _special_tokens(tokenizer)
    if not special.keys() & {THOUGHT_BEGINS, THOUGHT_ENDS}:
        return list(tokenizer.batch_decode(rows, skip_special_tokens=True))
    hidden = {token for text, token in special.items() if text not in (THOUGHT_BEGINS, THOUGHT_ENDS)}
    return list(tokenizer.batch_decode([[token for token in row if token not in hidden] for row in rows]))


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: Any) -> dict[str, int]:
    # skip_special_tokens drops both those with a role, as eos_token, and those that only tokenizer.json calls special.
    added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


@lru_cache(maxsize=8)
def settings_of(template: str) -> frozenset[str] | None:
    """The names that a chat template reads and the user may set; None if it cannot be parsed."""
    from jinja2 import Environment, TemplateError, meta

    # transformers adds a tag that marks what the assistant wrote.
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_GENERATION.sub("", template))
        return frozenset(meta.find_undeclared_variables(parsed)) - set(_NOT_SETTINGS)
    except TemplateError:
        return None


def settings_problem(template: str, values: Mapping[str, Any]) -> str | None:
    """A sentence about the first of model.chat_template_kwargs that a chat template does not read; None without one."""
    read = settings_of(template)
    unread = [name for name in values if read is not None and name not in read]
    if not unread:
        return None
    known = sorted(read or ())
    takes = f"it reads {', '.join(known)}" if known else "it reads none"
    return (
        f"model.chat_template_kwargs sets {unread[0]}, which the chat template does not read"
        f"{did_you_mean(unread[0], known)}: leave it out ({takes})"
    )
