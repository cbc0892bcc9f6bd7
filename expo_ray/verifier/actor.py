"""The verifier's actor: a plain class that the driver wraps with ray.remote; it works without Ray as well."""

from typing import Any

from expo_ray.config.schema import VerifierConfig
from expo_ray.messages import Verdict
from expo_ray.verifier.pool import Item, VerifierPool


class VerifierActor:
    """Grades responses in killable processes (expo_ray.verifier.pool)."""

    def __init__(self, config: VerifierConfig) -> None:
        self._pool = VerifierPool(config)

    def judge(self, items: list[Item]) -> list[Verdict]:
        """A verdict for each (response, gold answers, meta), in order.

        Raises:
            VerifierStartError: no grading process can be had.
        """
        return self._pool.judge(items)

    def ping(self) -> dict[str, Any]:
        """alive: processes; pids: theirs; restarts: processes replaced so far; isolation: layers in force."""
        return self._pool.ping()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
