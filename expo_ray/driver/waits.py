"""Bounded waits for actors. Each says what it waited for, for how long, for whom, and that one's last log line."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from expo_ray.actor_process import log_path


class ActorFailed(RuntimeError):
    """An actor raised, or its process died."""

    def __init__(self, sentence: str, actor: str) -> None:
        super().__init__(sentence)
        self.actor = actor


class WaitExpired(RuntimeError):
    """Some actors did not answer within the bound."""

    def __init__(self, sentence: str, actors: list[str]) -> None:
        super().__init__(sentence)
        self.actors = actors


@dataclass(frozen=True)
class Waiter:
    """Waits for answers of named actors, whose logs lie in `log_folder`."""

    log_folder: str

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
                answers[names[ref]] = self._take(ref, names[ref], what)
            if pending and not ready and left <= 0:
                late = [names[ref] for ref in pending]
                lines = "; ".join(f"{name}'s log ends: {self.last_line(name)}" for name in late)
                raise WaitExpired(f"{what}: no answer from {', '.join(late)} within {seconds:.0f} s. {lines}", late)
        return {name: answers[name] for name in refs}

    def last_line(self, name: str) -> str:
        """The last line of an actor's log."""
        path = log_path(self.log_folder, name)
        if not path.exists():
            return "(no log yet)"
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "(empty)")

    def _take(self, ref: Any, name: str, what: str) -> Any:
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            log = Path(log_path(self.log_folder, name))
            raise ActorFailed(f"{what}: {name} failed: {error.cause!r} (its log: {log})", name) from error
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise ActorFailed(f"{what}: {name} died: {reason} Its log ends: {self.last_line(name)}", name) from error
