"""Bounded waits for actors. Each error says what was waited for, for how long, for whom, and that actor's last log
line."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from expo_ray.config.errors import InputError
from expo_ray.runtime.process import Place, log_path

FETCH_S = 300.0
"""Bound on fetching an answer that is ready: from another node it still has to travel."""
TAIL_BYTES = 4096
PROGRESS_BAR = re.compile(r"\[(\d+:)+\d\d[<,]")
"""The times in one of tqdm's bars, such as `[00:03<00:01, 2.1it/s]`."""


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
        """
        names = {ref: name for name, ref in refs.items()}
        pending = list(names)
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=deadline.left)
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
        """Like `gather`, but an actor that fails or is late does not end the wait: its exception is its answer."""
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
            reason = str(error).strip().splitlines()[0]
            sentence = f"{what}: {self.where(name)} died: {reason} Its log ends: {self.last_line(name)}"
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
        """The last line of an actor's log that is not a progress bar: the reason of a death is often above one."""
        path = log_path(self.log_folder, name) if self.log_folder is not None else None
        if path is None or not path.exists():
            return "(no log here)"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            # A bar redraws itself after a carriage return, so it is many lines in one.
            lines = re.split(r"[\r\n]", file.read().decode(errors="replace"))
        said = [line.strip() for line in lines if line.strip()]
        return next((line for line in reversed(said) if not PROGRESS_BAR.search(line)), said[-1] if said else "(empty)")
