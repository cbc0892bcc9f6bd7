"""The texts of all prompts. `fill` inserts `{question}` and `{answer}` verbatim."""

from dataclasses import dataclass

ASK_FOR_BOX = "Reason step by step, and put your final answer within \\boxed{}."
ASK_FOR_LETTER = "Reason step by step, and put only the letter of your choice within \\boxed{}."

CONDITIONED_REQUEST = (
    "The correct answer is {answer}.\n\n"
    "Write the full derivation that arrives at it. It must stand on its own: a reader who sees only the problem, "
    "and not this answer, has to be able to follow and check every step. So derive the answer from the problem, "
    "and do not write that an answer was given to you."
)


@dataclass(frozen=True, slots=True)
class Templates:
    """The texts of one style, before any chat template is applied."""

    free: str
    conditioned: str
    answer_lead: str
    """Text that introduces the answer at the end of a completion."""
    answer_tail: str
    """Text that ends it, so that an answer is not scored as the prefix of a longer one."""
    answer_close: str
    """Text that completes the statement where it is trained on."""


CHAT = Templates(
    free="{question}",
    conditioned="{question}\n\n" + CONDITIONED_REQUEST,
    answer_lead="\n\nThe final answer is $\\boxed{",
    answer_tail="}",
    answer_close="$.",
)
BASE = Templates(
    free="Problem:\n{question}\n\n{instruction}\n\nSolution:\n",
    conditioned="Problem:\n{question}\n\n{instruction} " + CONDITIONED_REQUEST + "\n\nSolution:\n",
    answer_lead=CHAT.answer_lead,
    answer_tail=CHAT.answer_tail,
    answer_close=CHAT.answer_close,
)


def instruction_for(task: str) -> str:
    """The requested form of the reply, by the task that verifies it (conf/verifier)."""
    return ASK_FOR_LETTER if task == "choice" else ASK_FOR_BOX


def fill(template: str, **values: str) -> str:
    """Replaces each `{name}` by its value, in a single pass: braces in a question or an answer have no effect."""
    import re

    return re.sub(r"\{(question|answer|instruction)\}", lambda m: values[m.group(1)], template)
