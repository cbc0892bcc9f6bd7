"""The words of every prompt. `{question}` and `{answer}` are put in by `fill`, as they are."""

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
    """One style's texts, before a chat template is applied to them."""

    free: str
    conditioned: str
    answer_lead: str
    """What introduces the answer at the end of a completion."""
    answer_tail: str
    """What ends it, so that an answer is not scored as the prefix of a longer one."""


CHAT = Templates(
    free="{question}",
    conditioned="{question}\n\n" + CONDITIONED_REQUEST,
    answer_lead="\n\nThe final answer is $\\boxed{",
    answer_tail="}",
)
BASE = Templates(
    free="Problem:\n{question}\n\n{instruction}\n\nSolution:\n",
    conditioned="Problem:\n{question}\n\n{instruction} " + CONDITIONED_REQUEST + "\n\nSolution:\n",
    answer_lead=CHAT.answer_lead,
    answer_tail=CHAT.answer_tail,
)


def instruction_for(task: str) -> str:
    """What is asked of the reply's form, by the task that grades it (conf/verifier)."""
    return ASK_FOR_LETTER if task == "choice" else ASK_FOR_BOX


def fill(template: str, **values: str) -> str:
    """Puts values in for their `{name}`, in one pass: braces in a question or an answer mean nothing."""
    import re

    return re.sub(r"\{(question|answer|instruction)\}", lambda m: values[m.group(1)], template)
