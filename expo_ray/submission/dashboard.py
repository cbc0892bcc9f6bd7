"""Requests to a Ray dashboard, each with a bound. The token of RAY_AUTH_MODE=token is read by Ray's own client."""

import threading
import time
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any, TypeVar

Answer = TypeVar("Answer")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""A job's last states."""
AGENT_S = 60.0
"""A head answers some seconds before it knows of an agent, which is what starts jobs."""


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


def submit(client: Any, seconds: float, **job: Any) -> str:
    """Submits a job, and waits for the agent of a cluster that has just started.

    Args:
        client: Ray's JobSubmissionClient.
        seconds: bound on each request.
        job: of its submit_job.

    Returns:
        The job's name.

    Raises:
        NoAnswer, RuntimeError, ValueError: it was not taken.
    """
    deadline = time.monotonic() + AGENT_S
    while True:
        try:
            return ask(lambda: client.submit_job(**job), seconds)
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise NoAnswer(
                    f"no node of the cluster has an agent that starts jobs, for {AGENT_S:.0f} s by now; where several "
                    "Rays share a machine, give each its own port (ray start --dashboard-agent-listen-port)"
                ) from error
        time.sleep(1.0)


def time_to_stop(seconds: float) -> dict[str, str]:
    """A job's environment variable that makes Ray wait so long from SIGTERM to SIGKILL; its own 3 s are shorter than
    most steps, after which the checkpoint comes."""
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(int(seconds))}


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
