"""The coin of `bench.trl.reward` as a verifier task: `verifier.name=bench.trl.task:CoinTask`."""

from typing import Any

from bench.trl.reward import coin
from expo_ray.verifier.tasks import Graded, Task


class CoinTask(Task):
    """Correct if the coin shows heads; verified by actors and their processes like any answer."""

    def extract(self, response: str) -> str | None:
        return "heads" if coin(response) else "tails"

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> Graded:
        return extracted == "heads", "exact"
