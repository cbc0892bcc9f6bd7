"""Stands in for ray and time in modules under test: waiting moves a clock on, so bounds are tested without waiting."""

from dataclasses import dataclass
from typing import Any

import ray.exceptions

NEVER = float("inf")


@dataclass(eq=False)
class Ref:
    """An object reference: its value, or the exception that fetching it raises, is there at time `at`."""

    at: float
    value: Any


class Clock:
    """The parts of ray and time that runtime/waits and runtime/dispatch use."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, refs, num_returns=1, timeout=None):
        assert refs and len(set(refs)) == len(refs)
        assert timeout is not None, "every wait has a bound"
        self.now = max(self.now, min(min(ref.at for ref in refs), self.now + timeout))
        ready = [ref for ref in refs if ref.at <= self.now][:1]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref, timeout):
        assert ref.at <= self.now, "only what is ready is fetched"
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def put(self, value):
        return value

    def cluster_resources(self):
        return {"CPU": 2.0, "node:here": 1.0}
