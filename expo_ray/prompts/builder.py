"""Turns problems into prompts. Each text is tokenised here, once."""

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np

from expo_ray.config.errors import DataError
from expo_ray.messages import IntArray, Problem, Prompt
from expo_ray.prompts.templates import (
    BASE,
    CHAT,
    CLOSED,
    GUIDANCE,
    begun_thought,
    chain_before,
    decode_rows,
    fill,
    instruction_for,
    is_open,
    settings_problem,
    statement_start,
    toy_statement_start,
)

STYLES = ("chat", "base", "toy")
NAMES_FORM = re.compile(r"\\boxed|####")
DAY = date(2024, 7, 26)
"""The date in prompts: the one that Llama 3.2's chat template falls back to."""
Messages = list[tuple[str, str]]
"""(role, text) of each message of a prompt."""


class PromptBuilder:
    """Makes the prompts of one model and task.

    Args:
        tokenizer: a Hugging Face tokenizer.
        style: chat (the tokenizer's chat template), base (plain text), toy (the toy task's), or auto: toy for the toy
            task, chat if the tokenizer has a chat template, else base.
        task: conf/verifier's name, which determines the form of answer to ask for.
        values: what the chat template gets besides the messages (model.chat_template_kwargs).

    Raises:
        ValueError: an unknown style, chat without a chat template or with one that cannot be used, values that the
            template does not read, or a tokenizer without an end token.
    """

    def __init__(
        self, tokenizer: Any, style: str = "auto", task: str = "math", values: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.style = _resolve_style(tokenizer, style, task)
        self.values = dict(values or {})
        if self.values:
            _check_values(tokenizer, self.style, self.values)
        self.instruction = instruction_for(task)
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token: completions could not end")
        self.findings: list[str] = []
        """What is unusual about the chat template, a sentence each."""
        self.thought = ""
        """The thought that the chat template begins at the end of each prompt; empty if it begins none."""
        self._merges_system = self.style == "chat" and self._try_template()
        self.end_id = self._end_of_turn() if self.style == "chat" else int(tokenizer.eos_token_id)
        """Ends a completion: what the chat template puts behind the assistant's words (Gemma 3's `<end_of_turn>`, where
        the tokenizer's own end is `<eos>`), else the tokenizer's end token."""
        (self._lead,) = self._encode([self._answer_parts("")[0]])
        self.lead_tokens = len(self._lead)
        """Number of ids of `Prompt.answer_span` that introduce the answer; the others are the answer."""
        (self._closing,) = self._encode([CLOSED])

    def __call__(self, problems: Sequence[Problem]) -> list[Prompt]:
        """Builds each problem's prompts, its gold solution as a completion, and its answer's statement.

        All texts of a kind are tokenised in one call, which uses all cores.
        """
        if not problems:  # a tokenizer does not accept an empty batch
            return []
        pairs = [self.messages(problem) for problem in problems]
        free = self._prompt_ids([free for free, _ in pairs])
        conditioned = self._prompt_ids([conditioned for _, conditioned in pairs])
        # Where the prompt begins a thought, an expert's solution ends it at once.
        before = f"{CLOSED}\n\n" if self.thought else ""
        golds = self._encode([before + (problem.solution or "") for problem in problems])
        stated = self._encode([self._answer_parts(problem.answers[0])[1] for problem in problems])
        return [
            Prompt(
                problem=problem,
                free_ids=_ids(free[row]),
                conditioned_ids=_ids(conditioned[row]),
                gold_ids=None if problem.solution is None else _ids([*golds[row], self.end_id]),
                answer_span=_ids(self._lead + stated[row]),
                thought=self.thought,
            )
            for row, problem in enumerate(problems)
        ]

    def told(self, problems: Sequence[Problem], solutions: Sequence[str] | None = None) -> list[IntArray]:
        """Returns each problem's prompt that shows its first answer, or one of these solutions in its place.

        The toy task's prompt has room for an answer only: it shows the one that the solution ends in.
        """
        if not problems:
            return []
        shown: Sequence[str | None] = solutions or [None] * len(problems)
        rows = [self.messages(problem, solution)[1] for problem, solution in zip(problems, shown, strict=True)]
        return [_ids(row) for row in self._prompt_ids(rows)]

    def messages(self, problem: Problem, solution: str | None = None) -> tuple[Messages, Messages]:
        """Returns the messages of the free and of the conditioned prompt; outside chat each has one, the whole text.

        The conditioned prompt shows the problem's first answer, or `solution` in its place.

        A problem's own messages stay as they are. The request for a boxed answer becomes the system message, unless
        they have one, or name the answer's form (\\boxed or ####) in their question.
        """
        answer = problem.answers[0]
        if self.style == "toy":
            from expo_ray.world.running_totals import ANSWER_END, ANSWER_MARK, conditioned_prompt, free_prompt

            if solution is not None:
                answer = solution.rpartition(ANSWER_MARK)[2].partition(ANSWER_END)[0]
            texts = free_prompt(problem.question), conditioned_prompt(problem.question, answer)
            return [("user", texts[0])], [("user", texts[1])]
        templates = CHAT if self.style == "chat" else BASE
        told = templates.conditioned if solution is None else templates.shown
        free = self._messages(problem, problem.question, templates.free)
        return free, self._messages(problem, problem.question, told, answer=answer, solution=solution or "")

    def _messages(
        self, problem: Problem, question: str, template: str, wants_answer: bool = True, **values: str
    ) -> Messages:
        """The messages of one prompt of a chat or base model.

        Args:
            problem: the problem.
            question: its question, and what follows it.
            template: the last message.
            wants_answer: whether the answer's form is asked for.
            values: what the template shows besides.
        """
        before = list(problem.turns[:-1])
        if self.style == "base" and before:  # without a chat template there are no roles
            if any(role != "system" for role, _ in before):
                raise DataError(
                    f"problem {problem.uid} has messages of the assistant, and a model without a chat template cannot "
                    "be shown them: use a model with one, or take it out of the data"
                )
            question = "\n\n".join([*(text for _, text in before), question])
        instruction = instruction_for(problem.task) if problem.task else self.instruction
        text = fill(template, question=question, instruction=instruction, **values)
        if self.style == "base":
            return [("user", text)]
        own = any(role == "system" for role, _ in before) or (problem.turns and NAMES_FORM.search(problem.question))
        return [*([] if own or not wants_answer else [("system", instruction)]), *before, ("user", text)]

    def guided(self, problem: Problem, kind: str, text: str) -> IntArray:
        """The free prompt with one more request or text after the question; one that asks for a hint wants no answer.

        Args:
            problem: the problem.
            kind: hint (shows `text`, a hint), beginning (shows `text`, the beginning of a solution) or ask_hint (asks
                for a hint, showing `text`, a solution). The toy task's model reads no words: its prompt shows part of
                an answer's digits, every second one of that of `text` (hint), or those that `text` has (beginning).
            text: what is shown.
        """
        if self.style == "toy":
            from expo_ray.world.running_totals import conditioned_prompt, half_hidden, stated_so_far

            shown = half_hidden(text) if kind == "hint" else stated_so_far(problem.question, text)
            return _ids(self._prompt_ids([[("user", conditioned_prompt(problem.question, shown))]])[0])
        question = problem.question + "\n\n" + GUIDANCE[kind].replace("{text}", text)
        templates, asks = CHAT if self.style == "chat" else BASE, kind == "ask_hint"
        template = templates.ask_hint if asks else templates.free
        return _ids(self._prompt_ids([self._messages(problem, question, template, wants_answer=not asks)])[0])

    @property
    def asks_for_hints(self) -> bool:
        """Whether the model writes hints itself; the toy task's are made of an explanation's answer."""
        return self.style != "toy"

    def states_answer(self, text: str) -> bool:
        """Whether a completion's text has a final answer statement."""
        if self.style == "toy":
            return toy_statement_start(text) < len(text)
        return statement_start(self.thought + text) < len(self.thought + text)

    def chain_of(self, ids: IntArray) -> IntArray:
        """Cuts a completion's ids before its final answer statement; the stop token is never included.

        A thought holds no statement. Where the chain ends within one, the ids of `</think>` are added, so that an
        answer can follow; of no ids, that is what a prompt needs that begins a thought.
        """
        if self.style == "toy":
            return chain_before(ids, self.decode, toy_statement_start)
        chain = chain_before(ids, self.decode, lambda text: statement_start(self.thought + text) - len(self.thought))
        open_thought = is_open(self.thought + self.decode(chain.tolist()))
        return _ids([*chain.tolist(), *self._closing]) if open_thought else chain

    def restate(self, prompt: Prompt, ids: IntArray) -> tuple[IntArray, str]:
        """Replaces a completion's answer statement by the gold answer's: the target q -> c~ -> a*.

        Args:
            prompt: holds the gold answer; of several spellings, the first is stated.
            ids: a completion. Its chain's ids stay as sampled; a completion without a statement is all chain.

        Returns:
            The ids of the chain, of the statement, whose text is tokenised as one, and `end_id`; and their text.
        """
        lead, answer = self._answer_parts(prompt.problem.answers[0])
        (statement,) = self._encode([lead + answer + ("" if self.style == "toy" else CHAT.answer_close)])
        restated = [*self.chain_of(ids).tolist(), *statement]
        return _ids([*restated, self.end_id]), self.thought + self.decode(restated)

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids without special tokens."""
        return decode_rows(self.tokenizer, [ids])[0]

    def _answer_parts(self, answer: str) -> tuple[str, str]:
        if self.style == "toy":
            from expo_ray.world.running_totals import ANSWER_END, ANSWER_MARK

            return ANSWER_MARK, answer + ANSWER_END
        return CHAT.answer_lead, answer + CHAT.answer_tail

    def _prompt_ids(self, prompts: Sequence[Messages]) -> list[list[int]]:
        """Tokenises messages as prompts."""
        if self.style == "chat":
            return self._apply_chat_template(prompts)
        end = self.tokenizer.eos_token_id
        rows = self._encode([messages[-1][1] for messages in prompts], add_special_tokens=True)
        return [row[:-1] if row and row[-1] == end else row for row in rows]

    def _apply_chat_template(self, prompts: Sequence[Messages]) -> list[list[int]]:
        from jinja2 import TemplateError

        rows = [_chat(_without_system(each) if self._merges_system else each) for each in prompts]
        try:
            return list(
                self.tokenizer.apply_chat_template(
                    rows, tokenize=True, add_generation_prompt=True, return_dict=False, **self.values
                )
            )
        except TemplateError as error:  # a conversation of the data's own
            raise DataError(f"the model's chat template cannot render a prompt's messages ({error})") from error

    def _try_template(self) -> bool:
        """Renders a conversation; sets `thought`, and notes in `findings` what is unusual, with what came out.

        Returns:
            Whether the system message must be merged into the user's, because the template drops or refuses it.

        Raises:
            ValueError: the template cannot be rendered, or loses the user's message.
        """
        system, user = "Put the answer in a box.", "How many days has a week?"
        alone, both = [("user", user)], [("system", system), ("user", user)]
        plain, reason = self._rendered(alone)
        if "strftime_now" in self.tokenizer.get_chat_template():
            today, self.values = plain, {"strftime_now": DAY.strftime} | self.values
            plain, reason = self._rendered(alone)
            if plain != today:
                self.findings.append(
                    f"its chat template writes the day's date, and {DAY:%d %b %Y} is written on every day, so that a "
                    "run can go on tomorrow and evaluations show the same prompts"
                )
        if plain is None:
            raise ValueError(
                f"its chat template cannot be rendered ({reason}): mend it, or use model.prompt_style=base"
            )
        if user not in plain:
            raise ValueError(f"its chat template loses the user's message: {user!r} is rendered as {plain!r}")
        if self._rendered(alone, begin=False)[0] == plain:
            self.findings.append(
                "its chat template has no generation prompt, so the model itself must begin the assistant's turn: "
                f"a prompt is rendered as {plain!r}"
            )
        self.thought = begun_thought(plain)
        whole, _ = self._rendered(both)
        if whole is None or (user in whole and system in whole):
            return whole is None
        merged, _ = self._rendered(_without_system(both))
        self.findings.append(
            "its chat template drops the system message, so the user's message begins with it: a prompt is rendered as "
            f"{merged!r}"
        )
        return True

    def _end_of_turn(self) -> int:
        said = "It has seven."
        text, _ = self._rendered([("user", "How many days has a week?"), ("assistant", said)], begin=False)
        (behind,) = self._encode([(text or "").rpartition(said)[2].lstrip()])
        special = behind and (added := self.tokenizer.added_tokens_decoder.get(behind[0])) and added.special
        return int(behind[0] if special else self.tokenizer.eos_token_id)

    def _rendered(self, messages: Messages, begin: bool = True) -> tuple[str | None, str]:
        """The text of a conversation, or None with the template's reason."""
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                _chat(messages), tokenize=False, add_generation_prompt=begin, **self.values
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            line = f", line {found}" if (found := getattr(error, "lineno", None)) else ""
            return None, f"{(str(error) or type(error).__name__).splitlines()[0]}{line}"
        return str(text), ""

    def _encode(self, texts: list[str], add_special_tokens: bool = False) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"])


def _chat(messages: Messages) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in messages]


def _without_system(messages: Messages) -> Messages:
    """The same messages with the system's text before the first one of the user."""
    system = [text for role, text in messages if role == "system"]
    (role, first), *others = [message for message in messages if message[0] != "system"]
    return [(role, "\n\n".join([*system, first])), *others]


def _resolve_style(tokenizer: Any, style: str, task: str) -> str:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if style == "auto":
        return "toy" if task == "toy" else "chat" if has_template else "base"
    if style not in STYLES:
        raise ValueError(f"model.prompt_style={style}: expected auto, {', '.join(STYLES)}")
    if style == "chat" and not has_template:
        raise ValueError("model.prompt_style=chat, but the tokenizer has no chat template; use base")
    return style


def _check_values(tokenizer: Any, style: str, values: Mapping[str, Any]) -> None:
    if style != "chat":
        raise ValueError(
            f"model.chat_template_kwargs does nothing with prompts of the {style} style, which use no chat template: "
            "leave it out"
        )
    if problem := settings_problem(tokenizer.get_chat_template(), values):
        raise ValueError(problem)


def _ids(values: list[int]) -> IntArray:
    return np.asarray(values, dtype=np.int32)
