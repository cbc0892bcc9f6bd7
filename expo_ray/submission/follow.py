"""Following a job: its log as it grows, its end as an exit code, and Ctrl-C."""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Any

from expo_ray.submission.dashboard import ENDED, Answer, NoAnswer, ask, first_line

INTERRUPTED = 130


@dataclass(frozen=True)
class Limits:
    """Bounds of the waits, in seconds."""

    request_s: float = 60.0
    """One request."""
    poll_s: float = 2.0
    """Between two looks at the job's state, and between two tries to read its log."""
    lost_s: float = 600.0
    """How long the dashboard may be out of reach."""
    end_s: float = 10.0
    """How long the end of the log may take once the job has ended."""


class Tail:
    """One connection that brings a job's log as it grows, read in a thread.

    Args:
        connect: makes an iterator over pieces of the log, from its beginning.
    """

    def __init__(self, connect: Callable[[], AsyncIterator[str]]) -> None:
        self.error: Exception | None = None
        self.closed = False
        self._connect = connect
        self._pieces: Queue[str | None] = Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def next(self, seconds: float) -> str:
        """What has come since the last call; waits for it. Empty: nothing, or `closed`."""
        try:
            piece = None if self.closed else self._pieces.get(timeout=seconds)
        except Empty:
            return ""
        self.closed = piece is None
        return piece or ""

    def _run(self) -> None:
        try:
            asyncio.run(self._read())
        except Exception as error:  # told by the follower, which connects again
            self.error = error
        finally:
            self._pieces.put(None)

    async def _read(self) -> None:
        async for piece in self._connect():
            self._pieces.put(piece)


class Follower:
    """Prints a job's log on standard output until the job ends. What it says itself goes to standard error.

    Args:
        client: Ray's JobSubmissionClient.
        name: the job's submission id.
        limits: of the waits.
        ask_user: asks what Ctrl-C means: "stop", "leave" or "go on"; None: nobody is there to be asked.
    """

    def __init__(self, client: Any, name: str, limits: Limits, ask_user: Callable[[], str] | None) -> None:
        self._client, self._name, self._limits, self._ask_user = client, name, limits, ask_user
        self._printed = self._skip = 0
        self._tail: Tail | None = None
        self._told: str | None = None

    def follow(self) -> int:
        """Follows the job to its end.

        Returns:
            The exit code of the job's command; 128 + N where signal N ended it; 130 where it was stopped or left.

        Raises:
            NoAnswer: nothing was heard of the job for `lost_s`. It may still run.
        """
        while True:
            try:
                return self._to_the_end()
            except KeyboardInterrupt:
                if self._leaves():
                    return INTERRUPTED

    def _to_the_end(self) -> int:
        heard, looked, info = time.monotonic(), float("-inf"), None
        while True:
            if time.monotonic() - looked >= self._limits.poll_s:
                try:
                    info = self._ask(lambda: self._client.get_job_info(self._name))
                    heard = time.monotonic()
                except NoAnswer as error:
                    if time.monotonic() - heard > self._limits.lost_s:
                        raise NoAnswer(f"nothing was heard of it for {self._limits.lost_s:.0f} s ({error})") from error
                looked = time.monotonic()
            if info is not None and str(info.status.value) in ENDED:
                self._rest()
                return exit_code(info)
            self._print_piece()

    def _print_piece(self) -> None:
        """Prints what comes within `poll_s`; after a lost connection a new one begins with what was printed before."""
        if self._tail is None:
            self._skip = self._printed
            self._tail = Tail(lambda: self._client.tail_job_logs(self._name))
        self._print(self._tail.next(self._limits.poll_s))
        if not self._tail.closed:
            return
        reason = first_line(self._tail.error) if self._tail.error is not None else None
        if reason is not None and reason != self._told:
            tell(f"the log of {self._name} does not come ({reason}); trying again")
        self._told = reason
        self._tail = None
        time.sleep(self._limits.poll_s)

    def _rest(self) -> None:
        """Prints the end of the log, from the open connection or else in one request."""
        deadline = time.monotonic() + self._limits.end_s
        while self._tail is not None and not self._tail.closed and time.monotonic() < deadline:
            self._print(self._tail.next(max(0.0, deadline - time.monotonic())))
        if self._tail is not None and self._tail.closed and self._tail.error is None:
            return
        try:
            whole = self._ask(lambda: self._client.get_job_logs(self._name))
        except (NoAnswer, RuntimeError) as error:
            tell(f"the end of the log of {self._name} is missing ({first_line(error)})")
            return
        self._skip = self._printed
        self._print(whole)

    def _print(self, piece: str) -> None:
        """Prints a piece, less what a connection repeats of an earlier one."""
        repeated = min(self._skip, len(piece))
        self._skip -= repeated
        self._printed += len(piece) - repeated
        sys.stdout.write(piece[repeated:])
        sys.stdout.flush()

    def _leaves(self) -> bool:
        """After Ctrl-C: whether the job is left to itself."""
        try:
            wish = self._ask_user() if self._ask_user is not None else "leave"
        except KeyboardInterrupt:
            wish = "leave"
        if wish == "stop":
            self._stop()
        if wish == "leave":
            tell(f"{self._name} runs on; {how_to(self._client, self._name)}")
        return wish == "leave"

    def _stop(self) -> None:
        try:
            self._ask(lambda: self._client.stop_job(self._name))
            tell(f"{self._name} was asked to stop: it ends after its step, with a checkpoint")
        except (NoAnswer, RuntimeError) as error:
            tell(f"{self._name} could not be asked to stop: {first_line(error)}")

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        return ask(call, self._limits.request_s)


def exit_code(info: Any) -> int:
    """The exit code of an ended job, from Ray's JobDetails."""
    status = str(info.status.value)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return INTERRUPTED
    code = info.driver_exit_code
    if code is None:  # it did not come to a command: the environment could not be made, or the head was lost
        tell(f"the job failed: {info.message or 'Ray does not say why'}")
        return 1
    return code if code >= 0 else 128 - code


def how_to(client: Any, name: str) -> str:
    """The commands that follow and stop a job."""
    address = client.get_address()
    return (
        f"follow it: python -m expo_ray.submit --address {address} --follow {name}; "
        f"stop it: ray job stop --address {address} {name}"
    )


def tell(text: str) -> None:
    """One line on standard error, apart from the job's log."""
    print(f"submit: {text}", file=sys.stderr, flush=True)
