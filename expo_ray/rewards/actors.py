"""The actors that call reward functions, each in a process that it can kill, and their fleet in the driver."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from expo_ray.config.schema import DataConfig, RewardConfig
from expo_ray.messages import Group, Score
from expo_ray.rewards.functions import own_functions, record_of
from expo_ray.runtime.dispatch import Fleet
from expo_ray.runtime.process import ActorProcess, begin
from expo_ray.runtime.waits import Deadline
from expo_ray.verifier import wire

MAX_BLOCK = 256
"""Completions of one request to an actor; a group stays whole."""
START_S = 120.0
GRACE_S = 1.0
"""Added to reward.timeout_s, within which the process itself ends an async call."""
PAUSE_S = 0.5
"""Before the first retry; each further one waits twice as long, so that a busy service gets time."""
MAX_KILLS = 3
"""Hanging or dying calls of one function in a row, after which its other completions are not tried."""
WAIT_SHARE = 0.8
"""Of trainer.wait_s, the bound on one request: what is left then has failed, and the actor is not taken for lost."""


class RewardActor(ActorProcess):
    """Calls reward functions on completions; a failure is an answer, too.

    Args:
        config: the functions and their limits.
        wait_s: trainer.wait_s, within which every request is answered.
        name: of this actor.
        log_folder: where its log goes; None leaves the process's output alone.
    """

    def __init__(
        self, config: RewardConfig, wait_s: float, name: str = "reward", log_folder: str | None = None
    ) -> None:
        if log_folder is not None:
            begin(name, log_folder)
        self.config, self.bound_s = config, WAIT_SHARE * wait_s
        self.names = own_functions(config)
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def score(self, function: int, items: list[dict[str, Any]]) -> list[Score]:
        """What one function gives for each item (completion, answer, answers, question, record, messages), in
        order.

        function: its index among the functions of one's own.

        Raises:
            RuntimeError: the process that calls it does not start.
        """
        found: dict[int, Score] = {}
        left = list(range(len(items)))
        deadline, self._kills = Deadline(self.bound_s), 0
        for attempt in range(self.config.retries + 1):
            if attempt:
                time.sleep(min(PAUSE_S * 2 ** (attempt - 1), deadline.left))
            self._round(function, [(i, items[i]) for i in left], found, deadline)
            left = [i for i in left if found[i].failure]
            if not left or not deadline.left or self._kills >= MAX_KILLS:
                break
        return [found[i] for i in range(len(items))]

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._socket.close()
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def _round(
        self, function: int, items: Sequence[tuple[int, dict[str, Any]]], found: dict[int, Score], deadline: Deadline
    ) -> None:
        """Calls the function once for each item. Whatever keeps it from replying costs the item that it was at."""
        waiting = dict(items)
        while waiting:
            if self._kills >= MAX_KILLS or not deadline.left:
                hung = f"not tried after {MAX_KILLS} calls in a row that hung or died"
                why = hung if deadline.left else "trainer.wait_s ended"
                found |= {index: Score(None, why) for index in waiting}
                return
            self._start()
            began = time.monotonic()
            with contextlib.suppress(ConnectionError):  # the end of the process is seen below
                self._socket.sendall(wire.pack([function, list(waiting.items())]))
            while waiting:
                reply = self._receive(min(self.config.timeout_s + GRACE_S, deadline.left))
                if not isinstance(reply, list):
                    break
                index, value, failure, ms = reply
                del waiting[index]
                found[index], self._kills = Score(value, failure, ms), 0
            else:
                return
            self._kills += 1
            self.close()
            late = f"no answer within reward.timeout_s={self.config.timeout_s:g}"
            score = Score(None, "its process ended" if reply is None else late, (time.monotonic() - began) * 1000)
            for index in list(waiting) if self._batched[function] else list(waiting)[:1]:
                found[index] = score
                del waiting[index]

    def _start(self) -> None:
        """Starts the process unless it runs.

        Raises:
            RuntimeError: it ended, or is not ready in time.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._socket, theirs = socket.socketpair()
        arguments = json.dumps([self.names, self.config.timeout_s, self.config.concurrency])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "expo_ray.rewards.functions", str(theirs.fileno()), arguments],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        if not isinstance(forms := self._receive(START_S), list):
            self.close()
            what = "ended as it started; the log has its error" if forms is None else f"is not ready in {START_S:.0f} s"
            raise RuntimeError(f"the process that calls {', '.join(self.names)} {what}")
        self._batched: list[bool] = forms

    def _receive(self, wait_s: float) -> Any:
        """The next frame; None at the end of the process, False if none comes in time."""
        if not select.select([self._socket], [], [], wait_s)[0]:
            return False
        try:
            return wire.receive(self._socket)
        except ConnectionError:
            return None


class RewardFleet(Fleet):
    """Scores groups with all functions; survives lost actors. `wait_s` bounds one request."""

    kind: ClassVar[str] = "reward"
    chat = False
    """Whether the model's prompts are a chat: functions in TRL's form then get messages."""

    def admit(self) -> None:
        """A replacement serves as soon as it has started."""
        self.serve(self.workers | self.started())

    def score(self, groups: list[Group], reward: RewardConfig, data: DataConfig) -> list[Group]:
        """Returns the groups with the functions' scores of their free completions.

        Raises:
            ActorFailed: an actor was lost more often than trainer.max_restarts.
            WaitExpired: no actor is left and no replacement came up in time.
        """
        names = own_functions(reward)
        blocks = self._blocks([group for group in groups if group.rollout.completions])
        items = [[item for group in block for item in self._items(group, data)] for block in blocks]
        requests = [(function, of) for function in range(len(names)) for of in items]
        what = f"calling {', '.join(names)}"
        answers = self.dispatch(requests, lambda actor, request: actor.score.remote(*request), what)
        found: dict[str, list[Score]] = {
            name: [score for answer in answers[i * len(blocks) : (i + 1) * len(blocks)] for score in answer]
            for i, name in enumerate(names)
        }
        scored, start = [], 0
        for group in groups:
            end = start + len(group.rollout.completions)
            scored.append(replace(group, scores={name: of[start:end] for name, of in found.items()}))
            start = end
        return scored

    def _blocks(self, groups: list[Group]) -> list[list[Group]]:
        """Whole groups, about as many in each block, and blocks enough for every actor."""
        if not groups:
            return []
        completions = sum(len(group.rollout.completions) for group in groups)
        count = min(len(groups), max(self.size, -(-completions // MAX_BLOCK)))
        return [groups[i * len(groups) // count : (i + 1) * len(groups) // count] for i in range(count)]

    def _items(self, group: Group, data: DataConfig) -> list[dict[str, Any]]:
        problem = group.rollout.prompt.problem
        about: dict[str, Any] = {"question": problem.question, "answer": problem.answers[0]}
        about |= {"answers": list(problem.answers), "record": record_of(problem, data)}
        turns = problem.turns or (("user", problem.question),)
        about["messages"] = [{"role": role, "content": text} for role, text in turns] if self.chat else []
        return [about | {"completion": completion.text} for completion in group.rollout.completions]
