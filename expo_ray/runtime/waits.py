"""Bounded waits for actors. Each says what it waited for, for how long, for whom, and that one's last log line."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from expo_ray.runtime.process import Place, log_path


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


class WaitExpired(RuntimeError):
    """Some actors did not answer within the bound."""

    def __init__(self, sentence: str, actors: list[str]) -> None:
        super().__init__(sentence)
        self.actors = actors


@dataclass(frozen=True)
class Waiter:
    """Waits for answers of named actors, whose logs lie in `log_folder`."""

    log_folder: str
    places: dict[str, Place] = field(default_factory=dict)
    """Actor name -> where it runs, as far as it is known; whoever starts an actor fills it in."""

    def gather(self, refs: Mapping[str, Any], what: str, seconds: float) -> dict[str, Any]:
        """Waits for one answer of each actor.

        Args:
            refs: actor name -> object reference.
            what: what is waited for, as it will stand in an error ("generate for step 3").
            seconds: bound on the whole wait.

        Returns:
            Actor name -> answer, in the order of `refs`.

        Raises:
            ActorFailed: as soon as one raises or dies.
            WaitExpired: when the bound is passed, naming all that are late.
        """
        names = {ref: name for name, ref in refs.items()}
        pending = list(names)
        answers: dict[str, Any] = {}
        deadline = time.monotonic() + seconds
        while pending:
            left = deadline - time.monotonic()
            ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, left))
            for ref in ready:
                answers[names[ref]] = self.take(ref, names[ref], what)
            if pending and not ready and left <= 0:
                raise self.expired([names[ref] for ref in pending], what, seconds)
        return {name: answers[name] for name in refs}

    def settle(self, refs: Mapping[str, Any], what: str, seconds: float) -> dict[str, Any]:
        """Like `gather`, but an actor that fails or is late does not end the wait: its exception is its answer."""
        began = time.monotonic()
        outcomes: dict[str, Any] = {}
        for name, ref in refs.items():
            left = max(0.0, seconds - (time.monotonic() - began))
            try:
                outcomes |= self.gather({name: ref}, what, left)
            except (ActorFailed, WaitExpired) as error:
                outcomes[name] = error
        return outcomes

    def expired(self, late: list[str], what: str, seconds: float) -> WaitExpired:
        """The error that names the late actors, where they run, and the ends of their logs."""
        lines = "; ".join(f"{self.where(name)}: log ends: {self.last_line(name)}" for name in late)
        return WaitExpired(f"{what}: no answer from {', '.join(late)} within {seconds:.0f} s. {lines}", late)

    def where(self, name: str) -> str:
        """An actor's name with its process and node, where they are known."""
        place = self.places.get(name)
        return f"{name} (pid {place.pid} on node {place.node_ip})" if place else name

    def last_line(self, name: str) -> str:
        """The last line of an actor's log."""
        path = log_path(self.log_folder, name)
        if not path.exists():
            return "(no log here)"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "(empty)")

    def take(self, ref: Any, name: str, what: str) -> Any:
        """The value of a reference that is ready.

        Raises:
            ActorFailed: the actor raised, or is gone.
        """
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            log = Path(log_path(self.log_folder, name))
            sentence = f"{what}: {name} failed: {error.cause!r} (its log: {log})"
            raise ActorFailed(sentence, name, error.cause) from error
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            sentence = f"{what}: {self.where(name)} died: {reason} Its log ends: {self.last_line(name)}"
            raise ActorFailed(sentence, name) from error
