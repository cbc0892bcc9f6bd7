"""Reward functions (`reward.functions`): how each is found and called, and the process that calls them.

A function's parameters are filled by their names, so that its signature alone says in which form it is called.
`python -m expo_ray.rewards.functions FD NAMES` is the process: a reward actor starts it and kills it when it hangs.
"""

import asyncio
import ctypes
import inspect
import json
import math
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from expo_ray.config.errors import ConfigError, did_you_mean, import_own
from expo_ray.config.schema import Config, DataConfig, RewardConfig, VerifierConfig
from expo_ray.messages import Outcome, Problem, Verdict
from expo_ray.verifier import wire
from expo_ray.verifier.sandbox import PR_SET_PDEATHSIG
from expo_ray.verifier.tasks import WITHOUT_META

VERIFIER = "verifier"
"""The name in `reward.functions` that stands for the verifier's own reward; the only one by default."""
ONE = ("completion", "answer", "answers", "question", "record")
MANY = ("completions", "prompts", "answers", "questions", "records")
"""Parameters of a function that is called for one completion, and of one that is called with lists; any other name is
a column of the record."""
FAILURES: tuple[Outcome, ...] = ("timeout", "error")
"""Outcomes that say nothing about a response."""
Reply = Callable[[int, float | None, str, float], None]
"""Takes an item's index, its value, why it failed ("" if it did not) and its milliseconds."""


def own_functions(reward: RewardConfig) -> list[str]:
    """The names in `reward.functions` but for the verifier's."""
    return [name for name in reward.functions if name != VERIFIER]


def weights_of(reward: RewardConfig) -> dict[str, float]:
    """Each function's weight in the total reward; 1 each if `reward.weights` is empty."""
    return dict(zip(reward.functions, reward.weights or [1.0] * len(reward.functions), strict=True))


class VerifierFailureRate(RuntimeError):
    """More verdicts than `verifier.max_failure_rate` allows are timeouts or errors: the reward means nothing."""


def reward(verdict: Verdict, config: VerifierConfig) -> float | None:
    """The reward of one completion, or None where it is left out of its group (timeout, error)."""
    if verdict.outcome == "correct":
        return config.reward_correct
    if verdict.outcome in FAILURES and not config.count_failures_as_wrong:
        return None
    return config.reward_wrong + verdict.credit * (config.reward_correct - config.reward_wrong)


def judged_by_gold(problem: Problem, config: VerifierConfig) -> bool:
    """Whether the gold answer's text decides, so that another one may take its place: a scorer of the data set's own,
    and tests, read the problem's metadata instead. A class of the user's is taken to read the text."""
    task = problem.task or config.name
    return task in WITHOUT_META or ":" in task


def check_failure_rate(verdicts: Iterable[Verdict], config: VerifierConfig) -> float:
    """The share of timeouts and errors among a step's verdicts, 0 to 1 (0 without verdicts).

    Raises:
        VerifierFailureRate: the share passes `config.max_failure_rate`.
    """
    outcomes = [verdict.outcome for verdict in verdicts]
    failed = {outcome: outcomes.count(outcome) for outcome in FAILURES}
    rate = sum(failed.values()) / len(outcomes) if outcomes else 0.0
    if rate > config.max_failure_rate:
        own = f" An exception in {config.name} is an error: call it by hand to see it." if ":" in config.name else ""
        raise VerifierFailureRate(
            f"{failed['timeout']} timeouts and {failed['error']} errors in {len(outcomes)} verdicts: {rate:.1%} is "
            f"more than verifier.max_failure_rate={config.max_failure_rate:.1%}. Raise verifier.timeout_s or "
            f"verifier.memory_mib, or look at the responses.{own}"
        )
    return rate


@dataclass(frozen=True)
class RewardFunction:
    """A loaded function and the form in which it is called."""

    name: str
    call: Callable[..., Any]
    parameters: tuple[str, ...]
    required: tuple[str, ...]
    """Those without a default."""
    takes_columns: bool
    """It has `**columns`, which get every column of the record."""
    batched: bool
    """It gets lists: whole groups of completions in one call."""
    is_async: bool

    @property
    def like_trl(self) -> bool:
        """Whether it has TRL's form, `completions, **columns`: with a chat model it then gets lists of messages."""
        return self.batched and self.takes_columns

    def columns(self) -> list[str]:
        """The columns of the record that it cannot do without."""
        return [name for name in self.required if name not in (MANY if self.batched else ONE)]

    def arguments(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Keyword arguments for all of the items (batched), or for the only one.

        Raises:
            KeyError: a record lacks a column that the function needs.
        """
        if not self.batched:
            return self._named(items[0], items[0]["record"])
        rows = [self._named(_in_lists(item, self.like_trl), item["record"]) for item in items]
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}

    def _named(self, known: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        asked = {*self.parameters, *(("prompts", "completions") if self.like_trl else ())}
        found = {name: value for name, value in record.items() if self.takes_columns or name in asked}
        found |= {name: known[name] for name in (MANY if self.batched else ONE) if name in asked}
        if missing := [name for name in self.required if name not in found]:
            raise KeyError(f"the record has no column {missing[0]!r}")
        return found


def _in_lists(item: dict[str, Any], like_trl: bool) -> dict[str, Any]:
    """What one item adds to each list of a batched call. TRL gives messages where the prompts are a chat."""
    found = {"completions": item["completion"], "prompts": item["question"], "answers": item["answer"]}
    if like_trl and item["messages"]:
        found["completions"] = [{"role": "assistant", "content": item["completion"]}]
        found["prompts"] = item["messages"]
    return found | {"questions": item["question"], "records": item["record"]}


def load(name: str) -> RewardFunction:
    """Imports the function called `module:function` from the working directory or an installed package.

    Raises:
        ConfigError: no such module or function, or a signature that does not fit; one sentence.
    """
    module, colon, attribute = name.partition(":")
    where = f"reward.functions: {name}"
    if not colon or not module or not attribute:
        raise ConfigError(
            f"{where} is neither '{VERIFIER}' nor module:function: write my_file:accuracy for the function accuracy in "
            "my_file.py of the working directory"
        )
    found = import_own(module, where)
    call = getattr(found, attribute, None)
    if not callable(call):
        raise ConfigError(
            f"{where}: {found.__file__} has no function {attribute}{did_you_mean(attribute, vars(found))}"
        )
    return _described(name, call, where)


def _described(name: str, call: Callable[..., Any], where: str) -> RewardFunction:
    kinds = inspect.Parameter
    try:
        parameters = [p for p in inspect.signature(call).parameters.values() if p.kind != kinds.VAR_POSITIONAL]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} has no signature to read ({error}): wrap it in a function") from error
    named = [p for p in parameters if p.kind != kinds.VAR_KEYWORD]
    names = tuple(p.name for p in named)
    shown = f"({', '.join(map(str, parameters))})"
    if positional := [p.name for p in named if p.kind == kinds.POSITIONAL_ONLY]:
        raise ConfigError(f"{where}{shown}: '{positional[0]}' cannot be passed by name: take the '/' out")
    if ("completion" in names) == ("completions" in names):
        raise ConfigError(
            f"{where}{shown} needs one parameter 'completion' (called for one completion) or 'completions' "
            "(called with lists): def accuracy(completion, answer, *, question, record)"
        )
    return RewardFunction(
        name=name,
        call=call,
        parameters=names,
        required=tuple(p.name for p in named if p.default is kinds.empty),
        takes_columns=len(named) < len(parameters),
        batched="completions" in names,
        is_async=inspect.iscoroutinefunction(call),
    )


def reward_problems(reward: RewardConfig, here: bool) -> Iterator[str]:
    """Yields what is wrong with `reward`, a sentence each.

    here: whether the functions are imported; on a running cluster they may be on its nodes only.
    """
    names, weights = list(reward.functions), list(reward.weights)
    shown = f"reward.functions=[{','.join(names)}]"
    if not names:
        yield f"{shown} gives no reward: leave it out for the verifier's, reward.functions=[{VERIFIER}]"
    if repeated := [name for name in names if names.count(name) > 1]:
        yield f"{shown} names {repeated[0]} twice: name it once and set its weight"
    if weights and len(weights) != len(names):
        yield f"reward.weights has {len(weights)} weights for {len(names)} functions in {shown}: give one for each"
    if weights and not all(math.isfinite(weight) for weight in weights):
        yield f"reward.weights={weights} must be finite numbers"
    if names and weights and not any(weights):
        yield f"reward.weights={weights} leaves no reward: give some function a weight other than 0"
    for name in own_functions(reward):
        if ":" not in name or here:
            try:
                load(name)
            except ConfigError as error:
                yield str(error)


def check_columns(config: Config, problems: Callable[[], Sequence[Problem]]) -> None:
    """Checks that the data has the columns which the functions ask for by name.

    Args:
        config: the run's configuration. With `cluster.address` nothing is checked, see `reward_problems`.
        problems: reads the training problems, if a function asks for a column.

    Raises:
        ConfigError: in one sentence with the columns that there are.
    """
    names = own_functions(config.reward) if config.cluster.address is None else []
    for function in map(load, names):
        columns = function.columns()
        for problem in problems() if columns else ():
            record = record_of(problem, config.data)
            if missing := [name for name in columns if name not in record]:
                raise ConfigError(
                    f"reward.functions: {function.name} takes '{missing[0]}', which is no column of problem "
                    f"{problem.uid} (it has: {', '.join(list(record)[:12])}): name a column, or give it a default"
                )


def record_of(problem: Problem, data: DataConfig) -> dict[str, Any]:
    """The problem's record: each column by its own name, those that a key of `data` took included."""
    taken = {
        data.question_key: problem.question,
        data.answer_key: problem.answers[0],
        data.solution_key: problem.solution,
        data.level_key: problem.level,
        data.kind_key: problem.kind or None,
    }
    own = {key: value for key, value in taken.items() if key and value is not None}
    return {"uid": problem.uid} | own | problem.meta


def number(value: Any) -> float | None:
    """A function's return value as a reward; None: it could not decide.

    Raises:
        ValueError: not a finite number.
    """
    if value is None:
        return None
    try:
        found = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"returned {value!r:.60}, which is not a finite number or None")
    return found


class Caller:
    """Calls functions on items and replies for each item once; a failure is a reply, too.

    One event loop serves the whole life of the process, so that an async function may keep its connections.
    """

    def __init__(self, names: Sequence[str], timeout_s: float, concurrency: int) -> None:
        self.functions = [load(name) for name in names]
        self.timeout_s, self.concurrency = timeout_s, concurrency
        self._runner = asyncio.Runner()
        self._shown: set[tuple[str, type]] = set()

    def call(self, index: int, items: Sequence[tuple[int, dict[str, Any]]], reply: Reply) -> None:
        """Calls function `index`. Items are (their number, item); `reply` is called as each is done."""
        function = self.functions[index]
        if function.batched:
            self._batch(function, items, reply)
        elif function.is_async:
            self._runner.run(self._at_once(function, items, reply))
        else:
            for place, item in items:
                began = time.perf_counter()
                try:
                    value, failure = number(function.call(**function.arguments([item]))), ""
                except Exception as error:  # whatever the user's function raises
                    value, failure = None, self._failure(function, error)
                reply(place, value, failure, _ms(began))

    def _batch(self, function: RewardFunction, items: Sequence[tuple[int, dict[str, Any]]], reply: Reply) -> None:
        began = time.perf_counter()
        values: list[float | None] = [None] * len(items)
        failure = ""
        try:
            found = function.call(**function.arguments([item for _, item in items]))
            found = list(self._runner.run(self._bounded(found)) if function.is_async else found)
            if len(found) != len(items):
                raise ValueError(f"returned {len(found)} rewards for {len(items)} completions")
            values = [number(value) for value in found]
        except Exception as error:  # whatever the user's function raises
            failure = self._failure(function, error)
        ms = _ms(began) / len(items)
        for (place, _), value in zip(items, values, strict=True):
            reply(place, value, failure, ms)

    async def _at_once(
        self, function: RewardFunction, items: Sequence[tuple[int, dict[str, Any]]], reply: Reply
    ) -> None:
        room = asyncio.Semaphore(self.concurrency)

        async def one(place: int, item: dict[str, Any]) -> None:
            async with room:
                began = time.perf_counter()
                try:
                    value, failure = number(await self._bounded(function.call(**function.arguments([item])))), ""
                except Exception as error:  # whatever the user's function raises
                    value, failure = None, self._failure(function, error)
                reply(place, value, failure, _ms(began))

        await asyncio.gather(*(one(*item) for item in items))

    async def _bounded(self, awaitable: Any) -> Any:
        return await asyncio.wait_for(awaitable, self.timeout_s)

    def _failure(self, function: RewardFunction, error: Exception) -> str:
        if (function.name, type(error)) not in self._shown:  # the actor's log shows the first of each kind in full
            self._shown.add((function.name, type(error)))
            traceback.print_exception(error)
            sys.stderr.flush()
        if isinstance(error, TimeoutError) and not str(error):
            return f"no answer within reward.timeout_s={self.timeout_s:g}"
        return f"{type(error).__name__}: {error}"[:200]


def _ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def main(descriptor: int, names: list[str], timeout_s: float, concurrency: int) -> None:
    """Imports the functions, says so, and calls them as the actor asks until it closes the socket."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a hanging call does not outlive its actor
    actor = socket.socket(fileno=descriptor)
    caller = Caller(names, timeout_s, concurrency)
    actor.sendall(wire.pack([function.batched for function in caller.functions]))
    while (asked := wire.receive(actor)) is not None:
        caller.call(asked[0], asked[1], lambda *reply: actor.sendall(wire.pack(reply)))


if __name__ == "__main__":
    main(int(sys.argv[1]), *json.loads(sys.argv[2]))
