"""The coin of `bench.trl.reward` as a verifier task: `verifier.name=bench.trl.task:CoinTask`."""

from typing import Any

from bench.trl.reward import coin
from expo_ray.verifier.tasks import Graded, Task


class CoinTask(Task):
    """Right where the coin shows heads. It goes through verifier actors and their processes as any answer does."""

    def extract(self, response: str) -> str | None:
        return "heads" if coin(response) else "tails"

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> Graded:
        return extracted == "heads", "exact"
