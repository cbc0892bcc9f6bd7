"""What an answer is and when it is right: one small class for each task (`verifier.name`)."""

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from expo_ray.config.errors import DataError, did_you_mean
from expo_ray.config.schema import VerifierConfig
from expo_ray.messages import Problem
from expo_ray.verifier import extract, wire
from expo_ray.verifier.math.words import NotDecided

__all__ = ["NotDecided", "Task", "make_task"]

Graded = tuple[float, str]
"""How right it is, and the method that decided. True or 1: right; less: wrong, with that share of the reward."""


class Task:
    """Base of all tasks; a new one overrides `extract` and `grade` (docs/verifier.md)."""

    needs_meta = False
    """Whether `grade` reads `meta` (then the cache key holds it)."""

    runs_answers = False
    """Whether `grade` may evaluate an answer as code: each item then has a process of its own."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.strict = bool(config.get("strict", False))
        self.config = config

    def warm(self) -> None:
        """Do slow imports and first-time work once, before the processes are forked."""

    def begin(self, layers: list[str]) -> None:
        """Prepare a grading process, before it takes on its limits (`sandbox.enter` with these layers)."""

    finders: tuple[Callable[[str], str | None], ...] = ()
    """Of expo_ray.verifier.extract, tried in this order on what follows the last `</think>`."""

    strict_finders = 1
    """How many of them count if `verifier.strict` is set."""

    def extract(self, response: str) -> str | None:
        """The answer stated in a response; None when there is none."""
        if not self.finders:
            raise NotImplementedError(f"{type(self).__name__} has neither finders nor an extract of its own")
        response = extract.after_thinking(response)
        finders = self.finders[: self.strict_finders] if self.strict else self.finders
        return next((found for find in finders if (found := find(response)) is not None), None)

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> Graded:
        """Compare with one gold answer: right or not, or a share from 0 to 1 as partial credit.

        Raises:
            NotDecided: it would take too much to know.
        """
        raise NotImplementedError


class MathTask(Task):
    r"""Mathematics as in MATH: `\boxed{}`, then "the answer is", `####`, a last formula, a bare answer."""

    finders: tuple[Callable[[str], str | None], ...] = (
        extract.boxed, extract.tagged, extract.stated, extract.hashed, extract.bare, extract.last_math,
        extract.concluded,
    )  # fmt: skip

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        # The question says which formulas are only copied from it.
        self.needs_meta = config.get("answer_form", "any") == "simplified"
        self.percent_is_unit = bool(config.get("percent_is_unit", False))

    def warm(self) -> None:
        from expo_ray.verifier.math import compare

        compare.warm()

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> Graded:
        from expo_ray.verifier.math import compare

        wanted = self.gold_answer(gold)
        if self.needs_meta and not compare.is_simplified(extracted, wanted, str(meta.get("question", ""))):
            return False, "form"
        return compare.equal(extracted, wanted, self.percent_is_unit)

    def gold_answer(self, gold: str) -> str:
        r"""The answer in a gold text: what it boxes, `\boxed{42}` as well as a whole solution; else the text."""
        found = extract.boxed(gold) if re.search(r"\\(?:boxed|fbox)", gold) else None
        return re.sub(r"\s*\(?approx(?:imately|\.)?\)?\s*$", "", found or gold)


class Gsm8kTask(MathTask):
    """Grade-school word problems: `####` first, and the last number where nothing is marked."""

    finders = (extract.hashed, extract.boxed, extract.tagged, extract.stated, extract.last_number)
    strict_finders = 2

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({**config, "percent_is_unit": True})

    def gold_answer(self, gold: str) -> str:
        """The data set's own field is the whole solution with the gold behind ####."""
        return extract.hashed(gold) or super().gold_answer(gold)


class ChoiceTask(Task):
    """Multiple choice with letters A to J."""

    finders = (extract.boxed, extract.tagged, extract.stated, extract.hashed)

    def extract(self, response: str) -> str | None:
        response = extract.after_thinking(response)
        for find in self.finders[:1] if self.strict else self.finders:
            marked = find(response)
            if marked is not None and extract.has_choice(marked):
                return extract.choice(marked)
        return None if self.strict else extract.last_line_choice(response)

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> Graded:
        return extracted == (extract.choice(gold) or gold.strip()), "exact"


class ToyTask(Task):
    """The toy task: `3+4=7;7+2=9;A:79.` states 79."""

    def extract(self, response: str) -> str | None:
        return extract.toy(response)

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> Graded:
        return extracted == gold, "exact"


# reasoning-gym's scorers that evaluate an answer as Python (0.1.25; a test looks again), and what such an answer may
# consist of besides numbers and + - * / **. Nothing else reaches them, so that no code of a response runs.
EVALUATING_SCORERS = {
    "binary_matrix": "lists", "n_queens": "lists", "number_sorting": "lists", "spiral_matrix": "lists",
    "string_insertion": "lists", "countdown": "", "puzzle24": "", "polynomial_multiplication": "names",
    "intermediate_integration": "functions", "simple_integration": "functions",
}  # fmt: skip
_ARITHMETIC = (
    ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub,
    ast.UAdd, ast.Load,
)  # fmt: skip
_FORMS: dict[str, tuple[type[ast.AST], ...]] = {
    "": (), "lists": (ast.List, ast.Tuple, ast.Name), "names": (ast.Name,), "functions": (ast.Name, ast.Call),
}  # fmt: skip
_FUNCTIONS = re.compile(r"a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|sqrt|Abs")


def runs_no_code(answer: str, form: str) -> bool:
    """Whether evaluating an answer computes a value and nothing else, by its form in EVALUATING_SCORERS."""
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        # eval refuses it as well; sympy reads more than Python, such as x!, and runs what it finds there.
        return form == "lists"
    kinds = (*_ARITHMETIC, *_FORMS[form])
    for node in ast.walk(tree):
        if not isinstance(node, kinds):
            return False
        # A text within a formula would be parsed, and run, by sympy.
        if isinstance(node, ast.Constant) and not isinstance(node.value, (int, float, str)[: 2 + (form == "lists")]):
            return False
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            return False
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and _FUNCTIONS.fullmatch(node.func.id) and not node.keywords
        ):
            return False
    return True


class ReasoningGymTask(Task):
    """reasoning-gym's own scorers; `meta` is the entry, or the entry's metadata with its `source_dataset`.

    Scorers that evaluate an answer need `verifier.run_answers` and read only what `runs_no_code` lets through.
    """

    needs_meta = True
    finders = (extract.tagged, extract.boxed, extract.stated, extract.hashed, lambda response: response.strip() or None)
    strict_finders = 2

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.runs_answers = bool(config.get("run_answers", False))

    def warm(self) -> None:
        import reasoning_gym  # noqa: F401 - the import is the work

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> Graded:
        """Right is a score of 1; partial credit does not count.

        Raises:
            KeyError: `meta` does not name the scorer.
            PermissionError: the scorer evaluates answers, which is not allowed.
        """

        typed = meta.get("typed_metadata")  # JSON alone would make lists of tuples
        metadata = meta.get("metadata", meta) if typed is None else wire.decoded(typed, lambda _: None)
        name = metadata["source_dataset"]
        form = EVALUATING_SCORERS.get(name)
        if form is not None:
            if not self.runs_answers:
                raise PermissionError(
                    f"the scorer of {name} evaluates answers: set verifier.run_answers=true to allow it"
                )
            if not runs_no_code(extracted, form):
                return False, "form"
        score = _scorer(name)
        entry = {"question": meta.get("question", ""), "answer": gold, "metadata": metadata}
        return score(extracted, entry) >= 1.0, "text"


@lru_cache
def _scorer(name: str) -> Callable[[str, dict[str, Any]], float]:
    import reasoning_gym

    scorer: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(name)  # it makes a data set
    return scorer


TASKS: dict[str, type[Task]] = {
    "math": MathTask,
    "gsm8k": Gsm8kTask,
    "choice": ChoiceTask,
    "toy": ToyTask,
    "reasoning_gym": ReasoningGymTask,
}
ELSEWHERE = {"python_tests": "expo_ray.rewards.python_tests:PythonTests"}
"""Tasks of this package that are found by their import path, like a user's."""


@lru_cache
def task_problem(name: str) -> str | None:
    """What is wrong with a `verifier.name`, in one sentence; None where nothing is seen.

    A user's module is read and not run: it may import what is slow, or what only the grading machines have.
    """
    if name in TASKS:
        return None
    module, colon, attribute = ELSEWHERE.get(name, name).partition(":")
    if not colon:
        known = ", ".join([*TASKS, *ELSEWHERE])
        return (
            f"verifier.name={name} is neither a task{did_you_mean(name, [*TASKS, *ELSEWHERE])} ({known}) "
            "nor an import path package.module:Class"
        )
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return f"verifier.name={name}: no module {module} is found from here: start in the folder where it is"
    if not (spec.origin or "").endswith(".py"):
        return None
    source = Path(str(spec.origin)).read_text(encoding="utf-8")
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        return f"verifier.name={name}: {spec.origin} line {error.lineno} is not Python ({error.msg}): fix it"
    # A name that is mentioned at all may be imported, or made while the module runs.
    if re.search(rf"\b{re.escape(attribute)}\b", source):
        return None
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    return f"verifier.name={name}: {spec.origin} has no class {attribute}{did_you_mean(attribute, classes)}"


def make_task(name: str, config: dict[str, Any]) -> Task:
    """The task called `name`, or the class at an import path `package.module:Class`.

    Raises:
        ValueError: no such task, or not a Task.
    """
    module, colon, attribute = ELSEWHERE.get(name, name).partition(":")
    if name not in TASKS and not colon:
        raise ValueError(
            f"verifier.name={name!r}: not one of {[*TASKS, *ELSEWHERE]}, nor an import path package.module:Class"
        )
    found = TASKS.get(name) or getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"verifier.name={name!r}: {attribute} in {module} is not a subclass of Task")
    return found(config)


CHECKED = ("math", "gsm8k")
"""Tasks whose gold answers are checked."""
WITHOUT_META = ("math", "gsm8k", "choice", "toy")
"""Tasks that read no column of a record but question and answer."""
_CONTROLS = {"\t": "\\t", "\x0c": "\\f", "\x08": "\\b", "\r": "\\r", "\x0b": "\\v", "\x07": "\\a"}
_WHOLE = re.compile(r"-?[0-9]{1,15}")
_VOID = re.compile(r"(?:nan|none|null|n/a|\?+)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Golds:
    """The problems with their golds as they can be graded, and what was found."""

    problems: list[Problem]
    repaired: int
    unusable: int
    first: str
    """A gold answer that cannot be graded, with its problem; empty where there is none."""

    def text(self) -> str:
        """One line for the plan."""
        count = len(self.problems)
        first = f", first {self.first}" if self.first else ""
        return f"{count} gold answers checked, {self.repaired} repaired, {self.unusable} cannot be graded{first}"


def checked_golds(problems: Sequence[Problem], config: VerifierConfig) -> Golds:
    """Grade every gold answer against itself.

    Raises:
        DataError: more than `verifier.max_unusable_golds` of the problems have no gold that can be graded.
    """
    kept: list[Problem] = []
    unusable: list[Problem] = []
    for problem in problems:
        if (name := problem.task or config.name) not in CHECKED:
            kept.append(problem)
            continue
        usable = tuple(text for gold in problem.answers if (text := repair(name, gold)) is not None)
        kept.append(dataclasses.replace(problem, answers=usable) if usable else problem)
        unusable += [] if usable else [problem]
    repaired = sum(after.answers != before.answers for after, before in zip(kept, problems, strict=True))
    first = f"{unusable[0].uid}: {unusable[0].answers[0]!r:.60}" if unusable else ""
    if len(unusable) > config.max_unusable_golds * len(problems):
        raise DataError(
            f"{len(unusable)} of {len(problems)} gold answers cannot be graded by verifier.name={config.name}, first "
            f"{first}: fix the data, set data.answer_key, or raise "
            f"verifier.max_unusable_golds={config.max_unusable_golds}"
        )
    return Golds(kept, repaired, len(unusable), first)


@lru_cache(maxsize=1 << 16)
def repair(name: str, gold: str) -> str | None:
    """A gold answer as it can be graded: itself, or the answer that it plainly holds; None without one."""
    from expo_ray.verifier.math import compare

    if _WHOLE.fullmatch(gold):
        return gold
    task = make_task(name, {"name": name})
    assert isinstance(task, MathTask)
    plain = re.sub("[\x07-\x0d](?=[A-Za-z])", lambda match: _CONTROLS.get(match.group(), match.group()), gold)
    plain = plain if "\\begin" in plain else re.sub(r"\\\\(?=[A-Za-z%$!,;{}(])", r"\\", plain)
    held = [extract.boxed(plain), extract.hashed(plain), extract.stated(plain), task.gold_answer(gold), plain]
    for text in held:
        if text is None or _VOID.fullmatch(text.strip()) or re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text.strip(" ")):
            continue
        said = task.extract(f"#### {text}" if isinstance(task, Gsm8kTask) else f"\\boxed{{{text}}}")
        with contextlib.suppress(NotDecided):
            # The same text is right without being read, so that it must be readable as well.
            if said is not None and compare.is_readable(text) and task.grade(said, text, {})[0]:
                return text
    return None
