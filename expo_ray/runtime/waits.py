"""Bounded waits for actors. Each error says what was waited for, for how long, for whom, and what that actor's log
says."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray

from expo_ray.config.errors import InputError
from expo_ray.runtime.process import Place, log_path

FETCH_S = 300.0
"""Bound on fetching an answer that is ready: from another node it still has to travel."""
LOOK_S = 1.0
"""A wait looks this often whether Ray's own processes are alive, and lets the handlers of signals run."""
TAIL_BYTES = 1 << 16
PROGRESS_BAR = re.compile(r"\[(\d+:)+\d\d[<,]|\d+%( Completed)? ?\|")
"""The times in one of tqdm's bars, such as `[00:03<00:01, 2.1it/s]`, or its share, such as `0% Completed | 0/1`."""
TRACEBACK = "Traceback (most recent call last)"
CREATION = "Exception raised in creation task"
"""Begins what Ray says of an actor's constructor, with the traceback behind it."""
INVALID = re.compile(r"\d+ validation errors? for \w+$")
"""Ends the first line of pydantic's errors; what is wrong follows, up to ` [type=...`."""
LOGGED = re.compile(r"^(\([^)]*\) )?[A-Z]+ [\d-]+ [\d:.,]+ \[[^\]]*\] ?")
"""What vLLM puts before each line of a traceback: `(EngineCore pid=7) ERROR 11-24 10:00:00 [core.py:7] `."""
FATAL = re.compile(r"Fatal Python error|what\(\): |Check failed|out of memory|SIG(SEGV|ABRT|BUS) received")
"""What a process says that is ended by its C or C++ code; a stack or a list of modules follows."""
NEAR_END = 20
"""An exception further from the end of a log, in lines, did not end its process."""


REFUSALS = (ValueError, TypeError, NotImplementedError)


class ActorFailed(RuntimeError):
    """An actor raised, or its process died.

    Args:
        sentence: what happened.
        actor: its name.
        cause: what it raised; None where its process or node is gone.
    """

    def __init__(self, sentence: str, actor: str, cause: BaseException | None = None) -> None:
        super().__init__(sentence)
        self.actor, self.cause = actor, cause

    @property
    def refused(self) -> bool:
        """Whether the actor refused the request itself, as its replacement would, too."""
        return isinstance(self.cause, REFUSALS)


class WaitExpired(RuntimeError):
    """Some actors did not answer within the bound."""

    def __init__(self, sentence: str, actors: list[str]) -> None:
        super().__init__(sentence)
        self.actors = actors


class RayLost(RuntimeError):
    """Ray's own processes on this machine are gone, and with them every actor. Nothing can be started again."""


ray_processes: dict[str, psutil.Process] = {}
"""Ray's own processes on this machine, by name. Without one of them Ray waits for a minute and a half and then aborts.
`ray_node` keeps them."""


def check_ray() -> None:
    """Raises RayLost if one of Ray's own processes has ended."""
    for name, process in ray_processes.items():
        if not _runs(process):
            raise RayLost(
                f"Ray's {name} on this machine (process {process.pid}) has ended, and with it every actor; the same "
                "command resumes from the newest checkpoint"
            )


def _runs(process: psutil.Process) -> bool:
    # psutil's own identity counts from the machine's start: a step of the clock changes it not.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Deadline:
    """One bound that all waits of an operation share, however many functions it passes through.

    It holds for this process only: monotonic clocks differ between machines. Another process gets `left`.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that remain, 0 once it has passed."""
        return max(0.0, self._end - time.monotonic())


def wait_any(refs: Sequence[Any], seconds: float) -> tuple[list[Any], list[Any]]:
    """Waits until one of the references is ready, at most `seconds`.

    Returns:
        Those that are ready (at most one), and the others.

    Raises:
        RayLost: Ray's own processes have ended.
    """
    deadline = Deadline(seconds)
    while True:
        check_ray()
        ready, others = ray.wait(list(refs), num_returns=1, timeout=min(LOOK_S, deadline.left))
        if ready or not deadline.left:
            return ready, others


@dataclass(frozen=True)
class Waiter:
    """Waits for answers of named actors, which log to `log_folder` (None: unknown in this process)."""

    log_folder: str | None = None
    places: dict[str, Place] = field(default_factory=dict)
    """Actor name -> where it runs, once its start has been waited for."""

    def arrivals(self, refs: Mapping[str, Any], what: str, deadline: Deadline) -> Iterator[tuple[str, Any]]:
        """Yields each actor's name and answer, in the order in which they come.

        Args:
            refs: actor name -> object reference.
            what: what is waited for, as it appears in an error ("generate for step 3").
            deadline: bounds the whole wait.

        Raises:
            ActorFailed: as soon as one raises or dies.
            WaitExpired: when the deadline passes, naming all that are late.
            RayLost: Ray's own processes have ended.
        """
        names = {ref: name for name, ref in refs.items()}
        pending = list(names)
        while pending:
            ready, pending = wait_any(pending, deadline.left)
            if not ready:
                raise self.expired([names[ref] for ref in pending], what, deadline.seconds)
            for ref in ready:
                yield names[ref], self.take(ref, names[ref], what)

    def gather(self, refs: Mapping[str, Any], what: str, seconds: float) -> dict[str, Any]:
        """Waits for one answer of each actor, `seconds` for all of them; `arrivals` has the other arguments and errors.

        Returns:
            Actor name -> answer, in the order of `refs`.
        """
        answers = dict(self.arrivals(refs, what, Deadline(seconds)))
        return {name: answers[name] for name in refs}

    def settle(self, refs: Mapping[str, Any], what: str, seconds: float) -> dict[str, Any]:
        """Like `gather`, but an actor that fails or is late does not end the wait: its exception is its answer.

        Raises:
            InputError: an actor raised one, as in `gather`: whatever the others answer, the run cannot go on.
            RayLost: Ray's own processes have ended.
        """
        deadline = Deadline(seconds)
        outcomes: dict[str, Any] = {}
        for name, ref in refs.items():
            try:
                outcomes |= self.gather({name: ref}, what, deadline.left)
            except (ActorFailed, WaitExpired) as error:
                outcomes[name] = error
        return outcomes

    def take(self, ref: Any, name: str, what: str) -> Any:
        """The value of a reference that is ready.

        Raises:
            ActorFailed: the actor raised, or is gone.
            InputError: the actor raised one: starting it again cannot help.
        """
        try:
            return ray.get(ref, timeout=FETCH_S)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from error
            log = f" (its log: {log_path(self.log_folder, name)})" if self.log_folder is not None else ""
            sentence = f"{what}: {name} failed: {error.cause!r}{log}"
            raise ActorFailed(sentence, name, error.cause) from error
        except ray.exceptions.RayError as error:
            reason = _reason(error)
            sentence = f"{what}: {self.where(name)} died: {reason} Its log says: {self.cause(name)}"
            raise ActorFailed(sentence, name) from error

    def expired(self, late: list[str], what: str, seconds: float) -> WaitExpired:
        """The error that names the late actors, where they run, and the ends of their logs."""
        lines = "; ".join(f"{self.where(name)}: log ends: {self.last_line(name)}" for name in late)
        return WaitExpired(f"{what}: no answer from {', '.join(late)} within {seconds:.0f} s. {lines}", late)

    def where(self, name: str) -> str:
        """An actor's name with its process and node, if they are known."""
        place = self.places.get(name)
        return f"{name} (pid {place.pid} on node {place.node_ip})" if place else name

    def last_line(self, name: str) -> str:
        """The last line of an actor's log that is not a progress bar."""
        lines = self._lines(name)
        return lines if isinstance(lines, str) else lines[-1]

    def cause(self, name: str) -> str:
        """The line of an actor's log that says why it ended: an exception near its end, or what C++ code says when it
        ends a process. Without one, the last line."""
        lines = self._lines(name)
        return lines if isinstance(lines, str) else cause_in(lines).strip()

    def _lines(self, name: str) -> list[str] | str:
        """The last lines of a log without empty ones and progress bars; a note if there are none."""
        path = log_path(self.log_folder, name) if self.log_folder is not None else None
        if path is None or not path.exists():
            return "(no log here)"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            # A bar redraws itself after a carriage return, so it is many lines in one.
            lines = re.split(r"[\r\n]", file.read().decode(errors="replace"))
        said = [line.rstrip() for line in lines if line.strip()]
        return [line for line in said if not PROGRESS_BAR.search(line)] or (said[-1].strip() if said else "(empty)")


def cause_in(lines: Sequence[str]) -> str:
    """The line that says why a process ended: the last exception or fatal message; otherwise the last line."""
    found, raised = lines[-1], False
    for number, line in enumerate(lines):
        bare = LOGGED.sub("", line)
        if FATAL.search(line):
            found, raised = bare, False
        elif TRACEBACK in line or CREATION in line:
            raised = True
        elif raised and bare and not bare[0].isspace():
            raised = False
            if number >= len(lines) - NEAR_END:
                found = bare
                if INVALID.search(bare):
                    rest = " ".join(behind.strip() for behind in lines[number + 1 :])
                    found += f": {rest.partition(' [type=')[0]}"
    return found


def _reason(error: BaseException) -> str:
    """What Ray says of a lost actor, in a line; for one that could not be constructed, the exception in its text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if getattr(error, "actor_init_failed", False):
        return f"its constructor raised {cause_in([TRACEBACK, *lines[1:]]).strip()}."
    return lines[0].strip() if lines else type(error).__name__
