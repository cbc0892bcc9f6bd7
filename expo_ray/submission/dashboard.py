"""Requests to a Ray dashboard, each with a bound. The token of RAY_AUTH_MODE=token is read by Ray's own client."""

import threading
from collections.abc import Callable
from queue import Empty, Queue
from typing import TypeVar

Answer = TypeVar("Answer")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""A job's last states."""


class NoAnswer(RuntimeError):
    """The cluster's dashboard did not answer in time, could not be reached, or did not let us in."""


def ask(call: Callable[[], Answer], seconds: float) -> Answer:
    """One request. Ray's client sets no time limit of its own, so it runs in a thread that may be left behind.

    Args:
        call: makes the request.
        seconds: its bound.

    Raises:
        NoAnswer: not within the bound, out of reach, or the wrong token.
        Exception: whatever else the request raises.
    """
    from ray.exceptions import RayError

    answers: Queue[tuple[Answer | None, Exception | None]] = Queue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:  # handed to the caller's thread
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except Empty as empty:
        raise NoAnswer(f"no answer within {seconds:.0f} s") from empty
    if isinstance(error, OSError | RayError):  # RayError: the wrong token, among others
        raise NoAnswer(first_line(error)) from error
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
