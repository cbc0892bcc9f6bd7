"""Keeps actors from one run of a sweep to the next, because starting engines takes longer than a small run."""

from pathlib import Path
from typing import Any

from expo_ray.config.keys import as_settings, facts_of
from expo_ray.driver.actors import Actors
from expo_ray.preflight.plan import Plan
from expo_ray.runtime.journal import Events


class WarmActors:
    """Hands the actors of a finished run to the next one, if that one would start the same actors.

    Learners are rebuilt for each run and the first weight sync gives the engines its base model, so a run on warm
    actors is the same, bit for bit, as one that starts its own.
    """

    def __init__(self) -> None:
        self._idle: Actors | None = None

    def take(self, plan: Plan, folder: Path, context_tokens: int, stop_ids: tuple[int, ...], events: Events) -> Actors:
        """Returns actors for a run; arguments and errors are those of `Actors`."""
        idle, self._idle = self._idle, None
        fits = idle is not None and context_tokens <= idle.context_tokens and stop_ids == idle.stop_ids
        if idle is not None and fits and _same(idle.plan, plan):
            idle.adopt(plan.config, folder, events)
            return idle
        if idle is not None:
            idle.close()
        return Actors(plan, folder, context_tokens, stop_ids, events)

    def give_back(self, actors: Actors) -> None:
        """Takes back the actors of a run that ended without an error."""
        self._idle = actors

    def close(self) -> None:
        """Stops the actors that are kept."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None


def _same(running: Plan, wanted: Plan) -> bool:
    """Whether actors that were started for one plan serve a run of the other."""

    def started_with(plan: Plan) -> dict[str, Any]:
        return {key: value for key, value in as_settings(plan.config).items() if facts_of(key).actors}

    # The number of sequences may be derived from settings in which the runs differ.
    return running.max_sequences == wanted.max_sequences and started_with(running) == started_with(wanted)
