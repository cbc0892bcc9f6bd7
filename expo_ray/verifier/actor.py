"""The verifier's actor: a plain class that the driver wraps with ray.remote; it works without Ray as well."""

from typing import Any

from expo_ray.config.schema import VerifierConfig
from expo_ray.messages import Verdict
from expo_ray.runtime.process import ActorProcess, begin
from expo_ray.runtime.spans import span
from expo_ray.verifier.pool import Item, VerifierPool


class VerifierActor(ActorProcess):
    """Grades responses in killable processes (expo_ray.verifier.pool).

    Args:
        config: the task and its limits.
        name: of this actor.
        log_folder: where its log goes; None leaves the process's output alone.
    """

    def __init__(self, config: VerifierConfig, name: str = "verifier", log_folder: str | None = None) -> None:
        if log_folder is not None:
            begin(name, log_folder)
        self._pool = VerifierPool(config)

    def judge(self, items: list[Item]) -> list[Verdict]:
        """A verdict for each (response, gold answers, meta), in order.

        Raises:
            VerifierStartError: no grading process can be had.
        """
        with span("judge", items=len(items)):
            return self._pool.judge(items)

    def ping(self) -> dict[str, Any]:
        """alive: processes; pids: theirs; restarts: processes replaced so far; isolation: layers in force."""
        return self._pool.ping()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
