"""The grading process, and the warmed parent that forks it.

`python -m expo_ray.verifier.worker FD CONFIG` is the warmed parent: it imports the graders once (seconds), then
forks a process for each socket that the pool sends over FD (milliseconds). It reads no response itself.
"""

import array
import gc
import json
import os
import signal
import socket
import sys
import time
from collections import OrderedDict
from typing import Any

from expo_ray.verifier import sandbox, wire
from expo_ray.verifier.tasks import Graded, NotDecided, Task, make_task

ANSWER_CACHE = 8192
MAX_SHOWN = 2000
"""Characters of an extracted answer that a verdict carries."""


class Grader:
    """One task with its bounded cache of (answer, golds) already compared."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.cache: OrderedDict[tuple[str, ...], Graded] = OrderedDict()

    def verdict(self, response: str, golds: list[str], meta: dict[str, Any]) -> tuple[str, str | None, str, float]:
        """(outcome, extracted, method, credit) of one response; the caller bounds its time."""
        extracted: str | None = None
        try:
            extracted = self.task.extract(response)
            if extracted is None:
                return "no_answer", None, "none", 0.0
            share, method = self._grade(extracted, golds, meta)
        except NotDecided:
            return "error", extracted, "none", 0.0
        return ("correct", extracted, method, 0.0) if share >= 1 else ("wrong", extracted, method, float(share))

    def _grade(self, extracted: str, golds: list[str], meta: dict[str, Any]) -> Graded:
        key = (extracted, *golds)
        if self.task.needs_meta:
            key = (*key, json.dumps(meta, sort_keys=True, default=str))
        if key in self.cache:
            self.cache.move_to_end(key)
            return self.cache[key]
        graded: Graded = (0.0, "none")
        undecided: NotDecided | None = None
        for gold in golds:
            try:
                found = self.task.grade(extracted, gold, meta)
            except NotDecided as error:
                undecided = error
                continue
            if not 0 <= found[0] <= 1:
                raise ValueError(f"grade gives {found[0]}, which is no share from 0 to 1")
            if found[0] >= graded[0]:
                graded = found
            if graded[0] >= 1:
                break
        if undecided is not None and graded[0] < 1:
            raise undecided
        self.cache[key] = graded
        if len(self.cache) > ANSWER_CACHE:
            self.cache.popitem(last=False)
        return graded


def serve(descriptor: int, grader: Grader, timeout_s: float) -> None:
    """Answer frames of items until the pool closes the socket; replies go out one by one, in order."""
    while (items := wire.read_frame(descriptor)) is not None:
        for number, response, golds, meta in items:
            sandbox.allow_cpu(timeout_s)
            start = time.perf_counter()
            fatal = False
            try:
                outcome, extracted, method, credit = grader.verdict(response, golds, meta)
            except (MemoryError, RecursionError):
                # After either, half-built state of the libraries is not worth keeping.
                outcome, extracted, method, credit, fatal = "error", None, "none", 0.0, True
            except Exception:
                # Any failure of a library on hostile text is the third outcome, never a wrong answer.
                outcome, extracted, method, credit = "error", None, "none", 0.0
            ms = (time.perf_counter() - start) * 1000
            shown = None if extracted is None else extracted[:MAX_SHOWN]
            wire.write_all(descriptor, wire.pack([number, outcome, shown, method, ms, credit]))
            if fatal:
                os._exit(0)


def _grading_process(descriptor: int, grader: Grader, config: dict[str, Any], parent: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    sandbox.enter(config["memory_mib"], parent)
    serve(descriptor, grader, config["timeout_s"])


def main(control_descriptor: int, config: dict[str, Any]) -> None:
    """Import, warm, then fork on request until the pool is gone."""
    control = socket.socket(fileno=control_descriptor)
    grader = Grader(make_task(config["name"], config))
    grader.task.warm()
    layers = [*(["netns"] if sandbox.leave_network() else []), sandbox.probe()]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    control.sendall(wire.pack(layers))
    parent = os.getpid()
    while True:
        message, ancillary, _flags, _address = control.recvmsg(1, socket.CMSG_SPACE(4))
        if not message:
            return
        descriptors = array.array("i")
        descriptors.frombytes(ancillary[0][2][:4])
        pid = os.fork()
        if pid == 0:
            control.close()
            try:
                _grading_process(descriptors[0], grader, config, parent)
            finally:
                os._exit(0)
        os.close(descriptors[0])
        control.sendall(wire.pack(pid))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
