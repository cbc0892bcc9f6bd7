"""A pool of killable grading processes. The caller never waits longer for one item than its limit."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, get_args

import expo_ray
from expo_ray.config.schema import VerifierConfig
from expo_ray.messages import Outcome, Verdict
from expo_ray.verifier import sandbox, wire

log = logging.getLogger(__name__)

Item = tuple[str, tuple[str, ...], dict[str, Any]] | tuple[str, tuple[str, ...], dict[str, Any], str]
"""A response's text, its gold answers, the problem's meta, and the task that grades it ("" or none: the pool's)."""

MAX_ATTEMPTS = 3
"""Processes that may die under one item before it counts as wrong."""
RESPONSE_S_SHARE = 0.1
"""Share of an item's limit that its process spent computing, from which on the response is to blame for a timeout."""
MAX_CHUNK = 16
MAX_CHUNK_BYTES = 1 << 18
MAX_RESPONSE = 1 << 18
"""Characters of a response that are read: its last ones, where the answer is."""
VERDICT_CACHE = 16384
START_S = 120.0
FORK_S = 20.0


class VerifierStartError(RuntimeError):
    """The warmed parent of the grading processes did not start; the message has its last output."""


class _Parent:
    """The warmed process that forks graders (expo_ray.verifier.worker)."""

    def __init__(self, config: VerifierConfig, tasks: list[str]) -> None:
        ours, theirs = socket.socketpair()
        self.control = ours
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        # Nothing of our environment goes along: no tokens, no proxies, no Ray addresses.
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        folders = [os.path.dirname(expo_ray.__path__[0]), *filter(None, sys.path)]
        arguments = [str(theirs.fileno()), json.dumps(dataclasses.asdict(config) | {"tasks": tasks})]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "expo_ray.verifier.worker", *arguments],
            env=environment | {"PYTHONPATH": os.pathsep.join(folders)},
            cwd=tempfile.gettempdir(),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
        )
        theirs.close()
        self.isolation: list[str] | None = None
        self.one_item_each = False
        """Whether a process is thrown away after each item, because the answer ran in it as code."""

    def _receive(self, wait_s: float) -> Any:
        self.control.settimeout(wait_s)
        value = None
        with contextlib.suppress(TimeoutError, ConnectionError):
            value = wire.receive(self.control)
        if value is None:
            self.output.seek(0)
            said = self.output.read()[-2000:].decode(errors="replace")
            raise VerifierStartError(f"no grading process within {wait_s:.0f} s. Its output: {said or '(none)'}")
        return value

    def fork(self) -> tuple[int, socket.socket]:
        """A fresh grading process: its pid and our end of its socket."""
        if self.isolation is None:
            self.isolation, self.one_item_each = self._receive(START_S)
            log.info("isolation of the grading processes: %s", ", ".join(self.isolation))
            if (gap := sandbox.gap(self.isolation)) is not None:
                log.warning("THE ISOLATION HAS A GAP: code that a response gets to run could %s", gap)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self.control, [b"f"], [theirs.fileno()])
                pid = self._receive(FORK_S)
            except (OSError, VerifierStartError) as error:
                ours.close()
                raise VerifierStartError(f"the parent of the grading processes is gone: {error}") from error
        return pid, ours

    def close(self) -> None:
        self.control.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)
        self.output.close()


class _Process:
    """One grading process and the items it holds, in the order in which it answers them."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection
        connection.setblocking(False)
        try:
            self.handle: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self.handle = None
        self.held: deque[int] = deque()
        self.keys: deque[bytes] = deque()
        """Of the items held; a reply without its key is not the grader's."""
        self.outbox = bytearray()
        self.inbox = bytearray()
        self.restart_clock()

    def restart_clock(self) -> None:
        """An item begins."""
        self.since, self.cpu_since = time.monotonic(), self.cpu()

    def cpu(self) -> float:
        """CPU seconds of the process so far; 0 once it is dead."""
        try:
            # The clock of another process by its pid, as clock_getcpuclockid(3) makes it.
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            return 0.0

    def has_ended(self) -> bool:
        """Whether an idle process has closed its socket."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def kill(self) -> None:
        if self.handle is not None:
            # It may be dead already: what we wanted.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)
            os.close(self.handle)
            self.handle = None
        self.connection.close()


class _Batch:
    """One call of `judge`: its verdicts, and what is left to do."""

    def __init__(self, count: int) -> None:
        self.verdicts: list[Verdict | None] = [None] * count
        self.keys: list[bytes] = []
        self.attempts = [0] * count
        self.left: dict[int, list[Any]] = {}
        """The items without a verdict, as they are sent; `waiting` are those that no process holds."""
        self.waiting: deque[int] = deque()

    def settle(self, index: int, verdict: Verdict) -> None:
        self.verdicts[index] = verdict
        del self.left[index]


class VerifierPool:
    """`config.processes` grading processes with limits; those that hang or die are replaced."""

    def __init__(self, config: VerifierConfig) -> None:
        self.config = config
        self.restarts = 0
        self.cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._tasks = [config.name]
        self._parent = _Parent(config, self._tasks)
        self._processes: list[_Process] = []
        self._warned: set[str] = set()

    def judge(self, items: list[Item], progress: Callable[[int], None] | None = None) -> list[Verdict]:
        """A verdict for each item, in order; equal items of a batch are graded once.

        progress: called with the number of items still to be graded, after each event.

        Raises:
            VerifierStartError: no grading process can be had.
        """
        self._learn({task for _, _, _, *named in items for task in named if task})
        batch = _Batch(len(items))
        twins = self._queue(items, batch)
        try:
            while batch.left:
                self._step(batch)
                if progress is not None:
                    progress(len(batch.left))
        finally:
            # An interrupted call leaves no process with items that nobody waits for.
            for process in [p for p in self._processes if p.held]:
                self._drop(process)
        for index, first in twins:
            batch.verdicts[index] = batch.verdicts[first]
        return [verdict for verdict in batch.verdicts if verdict is not None]

    def ping(self) -> dict[str, Any]:
        """Alive processes, their pids, processes replaced so far, and the isolation in force."""
        self._fill()
        pids = [process.pid for process in self._processes]
        isolation = self._parent.isolation or []
        return {"alive": len(pids), "pids": pids, "restarts": self.restarts, "isolation": isolation}

    def close(self) -> None:
        """End every process. The pool cannot be used afterwards."""
        for process in self._processes:
            process.kill()
        self._processes.clear()
        self._parent.close()

    def _queue(self, items: list[Item], batch: _Batch) -> list[tuple[int, int]]:
        """Answer from the cache what it holds, queue the rest; returns (index, index of its equal)."""
        twins: list[tuple[int, int]] = []
        first_of: dict[bytes, int] = {}
        for index, (response, golds, meta, *task) in enumerate(items):
            packed = [response[-MAX_RESPONSE:], list(golds), meta, *task]
            key = hashlib.blake2b(wire.pack(packed), digest_size=16).digest()
            batch.keys.append(key)
            known = self.cache.get(key)
            if known is not None:
                self.cache.move_to_end(key)
                batch.verdicts[index] = dataclasses.replace(known, ms=0.0)
            elif key in first_of:
                twins.append((index, first_of[key]))
            else:
                first_of[key] = index
                batch.left[index] = packed
        batch.waiting.extend(batch.left)
        return twins

    def _fill(self) -> None:
        """Fork what is missing, and replace the warmed parent once if it died."""
        for process in list(self._processes):
            if not process.held and process.has_ended():
                self._drop(process)
        while len(self._processes) < self.config.processes:
            try:
                forked = self._parent.fork()
            except VerifierStartError:
                if self._parent.isolation is None:
                    raise
                self._restart_parent()
                forked = self._parent.fork()
            self._processes.append(_Process(*forked))

    def _learn(self, tasks: set[str]) -> None:
        """Start the warmed parent again with tasks that it has not imported: a grading process starts with them all."""
        if fresh := sorted(tasks - set(self._tasks)):
            self._tasks += fresh
            self._restart_parent()

    def _restart_parent(self) -> None:
        """Its end kills the processes that it forked; what becomes of the items that some hold is up to `_step`."""
        self._parent.close()
        self._parent = _Parent(self.config, self._tasks)
        for process in [process for process in self._processes if not process.held]:
            self._drop(process)

    def _drop(self, process: _Process) -> None:
        process.kill()
        self._processes.remove(process)
        self.restarts += 1

    def _step(self, batch: _Batch) -> None:
        """Hand out work, wait for one event at most until the nearest limit, and take in what came."""
        self._fill()
        for process in self._processes:
            if not process.held and batch.waiting:
                self._assign(process, batch)
        limit = self.config.timeout_s
        busy = [process for process in self._processes if process.held]
        with selectors.DefaultSelector() as selector:
            for process in busy:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.outbox else 0)
                selector.register(process.connection, events, process)
            ready = selector.select(max(0.0, min(process.since for process in busy) + limit - time.monotonic()))
        for key, _events in ready:
            self._exchange(key.data, batch)
        now = time.monotonic()
        for process in busy:
            if process.held and process in self._processes and now - process.since >= limit:
                index = process.held.popleft()
                # A response that keeps the processor busy is wrong; one that a starved machine did not get to is not.
                busy_s = process.cpu() - process.cpu_since
                outcome: Outcome = "wrong" if busy_s >= RESPONSE_S_SHARE * limit else "timeout"
                batch.settle(index, Verdict(outcome, None, "limit", (now - process.since) * 1000))
                self._abandon(process, batch)

    def _assign(self, process: _Process, batch: _Batch) -> None:
        share = 1 if self._parent.one_item_each else len(batch.waiting) // (4 * self.config.processes) + 1
        chunk: list[Any] = []
        size = 0
        while batch.waiting and len(chunk) < min(share, MAX_CHUNK) and size < MAX_CHUNK_BYTES:
            index = batch.waiting.popleft()
            process.held.append(index)
            chunk.append([index, *batch.left[index]])
            size += len(batch.left[index][0])
        process.keys.extend(secrets.token_bytes(wire.KEY_BYTES) for _ in chunk)
        process.outbox += wire.pack(chunk) + b"".join(process.keys)
        process.restart_clock()

    def _exchange(self, process: _Process, batch: _Batch) -> None:
        """Send and receive what is possible at once; a dead or lying process is replaced."""
        try:
            with contextlib.suppress(BlockingIOError):
                if process.outbox:
                    del process.outbox[: process.connection.send(process.outbox)]
            try:
                part = process.connection.recv(1 << 16)
            except BlockingIOError:
                return
            if not part:
                raise ConnectionError("closed")
            process.inbox += part
            while (reply := wire.unpack(process.inbox, wire.MAX_REPLY)) is not None:
                if not process.held:
                    raise wire.BadFrame("a reply to nothing")
                verdict = _checked(reply, process.held[0], process.keys[0])
                process.keys.popleft()
                index = process.held.popleft()
                process.restart_clock()
                batch.settle(index, verdict)
                self._warn(verdict)
                if verdict.outcome not in ("error", "timeout"):
                    self.cache[batch.keys[index]] = verdict
                    if len(self.cache) > VERDICT_CACHE:
                        self.cache.popitem(last=False)
                if self._parent.one_item_each:
                    return self._drop(process)
        except (OSError, wire.BadFrame):
            # It died: the item it worked on is tried again. Whatever kills MAX_ATTEMPTS of them is wrong.
            if process.held:
                index = process.held[0]
                batch.attempts[index] += 1
                if batch.attempts[index] >= MAX_ATTEMPTS:
                    process.held.popleft()
                    batch.settle(index, Verdict("wrong", None, "limit", (time.monotonic() - process.since) * 1000))
            self._abandon(process, batch)

    def _abandon(self, process: _Process, batch: _Batch) -> None:
        batch.waiting.extendleft(reversed(process.held))
        process.held.clear()
        process.keys.clear()
        self._drop(process)

    def _warn(self, verdict: Verdict) -> None:
        """Log the first failure of each kind: a task's own fault would otherwise look like wrong answers."""
        kind = verdict.method.split(":")[1] if verdict.method.startswith("failed:") else ""
        if kind and kind not in self._warned:
            self._warned.add(kind)
            log.warning(
                "the task %s failed on a response, graded %s: %s", self.config.name, verdict.outcome, verdict.method
            )


def _checked(reply: Any, index: int, key: bytes) -> Verdict:
    """The verdict in a reply of an untrusted process, or BadFrame."""
    if not isinstance(reply, list) or len(reply) != 7 or reply[:2] != [key.hex(), index]:
        raise wire.BadFrame("not the reply to the item that was due")
    _key, _index, outcome, extracted, method, credit, ms = reply
    if outcome not in get_args(Outcome) or not isinstance(method, str) or not isinstance(ms, float):
        raise wire.BadFrame("not a verdict")
    if not isinstance(credit, float) or not 0 <= credit < 1 or (credit and outcome != "wrong"):
        raise wire.BadFrame("not a partial credit")
    if extracted is not None and not isinstance(extracted, str):
        raise wire.BadFrame("not an extracted answer")
    return Verdict(outcome, extracted, method, ms, credit)
