"""The grading process, and the warmed parent that forks it.

`python -m expo_ray.verifier.worker FD CONFIG` is the warmed parent: it imports the graders once (seconds), then
forks a process for each socket that the pool sends over FD (milliseconds). It reads no response itself.
"""

import gc
import json
import os
import signal
import socket
import sys
import time
from typing import Any

from expo_ray.verifier import sandbox, wire
from expo_ray.verifier.tasks import Graded, NotDecided, Task, make_task

ANSWER_CACHE = 8192
MAX_SHOWN = 2000
"""Characters of an extracted answer that a verdict carries."""
Found = tuple[str, str | None, str, float]
"""Outcome, extracted answer, method, credit."""
BEYOND_LIMITS: Found = ("wrong", None, "limit", 0.0)
"""What a response earns that cannot be graded within the limits: it wrote that, and must not gain by it."""


class BadShare(ValueError):
    """A task's `grade` gave what is no share from 0 to 1: the task's own fault."""


class Grader:
    """One task with its bounded cache of (answer, golds) already compared."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.cache: dict[tuple[str, ...], Graded] = {}

    def verdict(self, response: str, golds: list[str], meta: dict[str, Any]) -> Found:
        """Grade one response; the caller bounds its time. A failure that the gold causes as well is an `error`."""
        extracted: str | None = None
        try:
            extracted = self.task.extract(response)
            if extracted is None:
                return "no_answer", None, "none", 0.0
            share, method = self._grade(extracted, golds, meta)
        except NotDecided:
            return "wrong", extracted, "limit", 0.0
        except (MemoryError, RecursionError, BadShare):
            raise
        except Exception as error:
            # A library failed on hostile text. The response is to blame, unless the gold fails alike.
            blamed = "error" if any(self._fails(gold, meta) for gold in golds) else "wrong"
            return blamed, extracted, f"failed: {type(error).__name__}: {error}"[:200], 0.0
        return ("correct", extracted, method, 0.0) if share >= 1 else ("wrong", extracted, method, float(share))

    def _fails(self, gold: str, meta: dict[str, Any]) -> bool:
        try:
            self.task.grade(gold, gold, meta)
        except Exception:
            return True
        return False

    def _grade(self, extracted: str, golds: list[str], meta: dict[str, Any]) -> Graded:
        key = (extracted, *golds, json.dumps(meta, sort_keys=True, default=str) if self.task.needs_meta else "")
        if key in self.cache:
            return self.cache[key]
        best: Graded = (0.0, "none")
        undecided: NotDecided | None = None
        for gold in golds:
            try:
                found = self.task.grade(extracted, gold, meta)
            except NotDecided as error:
                undecided = error
                continue
            if not 0 <= found[0] <= 1:
                raise BadShare(f"grade gives {found[0]}, which is no share from 0 to 1")
            best = found if found[0] >= best[0] else best
            if best[0] >= 1:
                break
        if undecided is not None and best[0] < 1:
            raise undecided
        if len(self.cache) >= ANSWER_CACHE:
            del self.cache[next(iter(self.cache))]
        self.cache[key] = best
        return best


def serve(pool: socket.socket, graders: dict[str, Grader]) -> None:
    """Answer frames of items until the pool closes the socket; replies go out one by one, in order."""
    while not sandbox.worn_out() and (items := wire.receive(pool)) is not None:
        for number, response, golds, meta, *task in items:
            start = time.perf_counter()
            fatal = False
            try:
                found = graders[(task or [""])[0]].verdict(response, golds, meta)
            except (MemoryError, RecursionError):
                # After either, half-built state of the libraries is not worth keeping.
                found, fatal = BEYOND_LIMITS, True
            except BadShare as error:
                found = ("error", None, f"failed: BadShare: {error}", 0.0)
            ms = (time.perf_counter() - start) * 1000
            # The key is read after the grading, so that no graded code can have seen it.
            key = pool.recv(wire.KEY_BYTES, socket.MSG_WAITALL).hex()
            pool.sendall(wire.pack([key, number, *_shown(found), ms]))
            if fatal:
                return


def _shown(found: Found) -> Found:
    outcome, extracted, method, credit = found
    return outcome, extracted and extracted[:MAX_SHOWN], method, credit


def main(control_descriptor: int, config: dict[str, Any]) -> None:
    """Import, warm, then fork a grading process for each socket that comes, until the pool is gone."""
    control = socket.socket(fileno=control_descriptor)
    graders = {name: Grader(make_task(name, config)) for name in config["tasks"]}
    tasks = [grader.task for grader in graders.values()]
    graders[""] = graders[config["name"]]
    for task in tasks:
        task.warm()
    null = os.open(os.devnull, os.O_RDWR)
    layers = sandbox.layers(sandbox.isolate())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    control.sendall(wire.pack([layers, any(task.runs_answers for task in tasks)]))
    parent = os.getpid()
    while (received := socket.recv_fds(control, 1, 1))[0]:
        with socket.socket(fileno=received[1][0]) as pool:
            pid = os.fork()
            if pid == 0:
                try:
                    control.close()
                    for standard in (0, 1, 2):
                        os.dup2(null, standard)
                    for task in tasks:
                        task.begin(layers)
                    sandbox.enter(config["memory_mib"], parent, config["timeout_s"], layers)
                    serve(pool, graders)
                finally:
                    os._exit(0)
        control.sendall(wire.pack(pid))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
