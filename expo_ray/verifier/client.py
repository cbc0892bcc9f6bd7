"""Sends items to verifier actors and outlives their deaths; used by the driver."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError

from expo_ray.messages import Verdict
from expo_ray.verifier.pool import Item

MAX_BLOCK = 256
"""Items of one request: what is sent again when an actor dies."""
MAX_SENDS = 5
"""Actors that may die under one block before the call gives up."""


def judge_all(handles: list[Any], items: list[Item], respawn: Callable[[int], Any], wait_s: float) -> list[Verdict]:
    """A verdict for each item, in order, from several VerifierActor handles.

    Args:
        handles: Ray actor handles; a dead one is replaced in this list.
        items: (response, gold answers, meta).
        respawn: gives a new handle for the actor at an index.
        wait_s: seconds without any finished block after which the call gives up.

    Raises:
        TimeoutError: no block finished within `wait_s`.
        RayActorError: actors died under one block MAX_SENDS times.
    """
    size = max(1, min(MAX_BLOCK, -(-len(items) // (4 * len(handles)))))
    waiting = list(reversed([range(start, min(start + size, len(items))) for start in range(0, len(items), size)]))
    verdicts: list[Verdict | None] = [None] * len(items)
    sends: dict[range, int] = {}
    free = list(range(len(handles)))
    running: dict[Any, tuple[int, range]] = {}
    while waiting or running:
        while free and waiting:
            index, block = free.pop(), waiting.pop()
            sends[block] = sends.get(block, 0) + 1
            running[handles[index].judge.remote([items[i] for i in block])] = (index, block)
        done, _pending = ray.wait(list(running), num_returns=1, timeout=wait_s)
        if not done:
            late = sorted(index for index, _block in running.values())
            raise TimeoutError(f"verifier actors {late} finished nothing within {wait_s:.0f} s")
        index, block = running.pop(done[0])
        free.append(index)
        try:
            answers = ray.get(done[0], timeout=wait_s)
        except RayActorError:
            if sends[block] >= MAX_SENDS:
                raise
            handles[index] = respawn(index)
            waiting.append(block)
            continue
        for item, verdict in zip(block, answers, strict=True):
            verdicts[item] = verdict
    return [verdict for verdict in verdicts if verdict is not None]
