"""Requests to a Ray dashboard, each with a bound. Ray's own client reads the token of RAY_AUTH_MODE=token."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Answer = TypeVar("Answer")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""The last states of a job."""
AGENT_S = 60.0
"""A new head answers some seconds before it knows an agent, which starts the jobs."""


class NoAnswer(RuntimeError):
    """The dashboard did not answer in time, could not be reached, or rejected the token."""


def ask(call: Callable[[], Answer], seconds: float) -> Answer:
    """Makes one request. Ray's client has no time limit, so a thread makes it, and is left behind if it hangs.

    Raises:
        NoAnswer: not within `seconds`, unreachable, or the wrong token. Any other error is the request's own.
    """
    from ray.exceptions import RayError

    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except Exception as error:  # the caller raises it
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        raise NoAnswer(f"no answer within {seconds:.0f} s") from error
    except (OSError, RayError) as error:  # RayError: among others, the wrong token
        raise NoAnswer(first_line(error)) from error


def submit(client: Any, seconds: float, **job: Any) -> str:
    """Submits a job, and waits for the agent of a cluster that has just started.

    Args:
        client: Ray's JobSubmissionClient.
        seconds: bound on each request.
        job: arguments of its submit_job.

    Returns:
        The job's name.

    Raises:
        NoAnswer, RuntimeError, ValueError: it was not accepted.
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
                    f"for {AGENT_S:.0f} s no node of the cluster has had an agent that starts jobs; if several Rays "
                    "share a machine, give each its own port (ray start --dashboard-agent-listen-port)"
                ) from error
        time.sleep(1.0)


def time_to_stop(seconds: float) -> dict[str, str]:
    """The variable that sets Ray's time from SIGTERM to SIGKILL; its 3 s are too short for a step and a checkpoint."""
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(int(seconds))}


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
