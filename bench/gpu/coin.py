"""A verifier for speed runs with random weights: right about every second time, so that groups have a signal."""

import zlib
from typing import Any

from expo_ray.verifier.tasks import Graded, Task


class Coin(Task):
    """Grades by a checksum of the text alone, and so the same text always alike."""

    def extract(self, response: str) -> str | None:
        return str(zlib.crc32(response.encode()) & 1)

    def grade(self, extracted: str, gold: str, meta: dict[str, Any]) -> Graded:
        return extracted == "1", "exact"
