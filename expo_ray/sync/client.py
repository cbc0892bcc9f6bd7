"""The learner's calls to the rollout workers during a sync, every wait bounded and every late worker named."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from expo_ray.sync.errors import SyncError, SyncTimeout


class BoundedWeightSyncClient:
    """vLLM's VLLMWeightSyncClient protocol over Ray actors (expo_ray.sync.receiver) by name.

    Unlike vLLM's own Ray client it gives every worker a `rank_offset` of its own: several independent
    engines would else all take the same ranks of the transfer group.
    """

    def __init__(self, workers: Mapping[str, ActorHandle], timeout_s: float, ranks_per_worker: int = 1) -> None:
        """`timeout_s` bounds all calls between two `restart_clock()`; `ranks_per_worker`: tensor parallel size."""
        self._workers = dict(workers)
        self._timeout_s = timeout_s
        self._ranks_per_worker = ranks_per_worker
        self.weight_version: int | None = None
        """The version that `finish_weight_update` gives the engines where its caller names none."""
        self.phase = ""
        """The call under way, for messages; empty between calls."""
        self.waiting_for: list[str] = []
        """The workers that have not answered it."""
        self.seconds: dict[str, float] = {}
        """How long the calls of each phase of this round took, together."""
        self.restart_clock()

    def restart_clock(self) -> None:
        """A new round: all of its calls together have `timeout_s`."""
        self._deadline = time.monotonic() + self._timeout_s
        self.seconds = {}

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every worker join the transfer."""

        def request(index: int) -> tuple[Any, ...]:
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += index * self._ranks_per_worker
            return ({"init_info": info},)

        self._call("connect", "init_weight_transfer_engine", request)

    def start_weight_update(self) -> None:
        """Open a round in every engine."""
        self._call("start", "start_weight_update", lambda _: ())

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Let every engine receive; returns when all have loaded."""
        # One copy in the object store, however many workers there are.
        request = ray.put({"update_info": update_info})
        self._call("update", "update_weights", lambda _: (request,))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close the round in every engine and set its version."""
        if weight_version is None and self.weight_version is not None:
            weight_version = str(self.weight_version)
        self._call("finish", "finish_weight_update", lambda _: (weight_version,))

    def shutdown_weight_transfer_engine(self) -> None:
        """Let every worker drop its connection."""
        self._call("close", "shutdown_weight_transfer_engine", lambda _: ())

    def _call(self, phase: str, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> None:
        """Raises SyncTimeout or SyncError, naming the worker and the phase."""
        began = time.monotonic()
        names = {
            getattr(handle, method).remote(*arguments(index)): name
            for index, (name, handle) in enumerate(self._workers.items())
        }
        pending = list(names)
        self.phase = phase
        while pending:
            self.waiting_for = [names[reference] for reference in pending]
            left = max(0.0, self._deadline - time.monotonic())
            ready, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not ready:
                raise SyncTimeout(self.late(self._timeout_s), tuple(self.waiting_for))
            try:
                ray.get(ready[0], timeout=max(1.0, left))
            except GetTimeoutError as error:
                raise SyncTimeout(self.late(self._timeout_s), tuple(self.waiting_for)) from error
            except RayError as error:
                cause = getattr(error, "cause", None) or error
                reason = f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else ''}"
                name = names[ready[0]]
                raise SyncError(f"rollout worker {name} failed in phase {phase}: {reason}", (name,)) from error
        self.phase, self.waiting_for = "", []
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began

    def late(self, after_s: float) -> str:
        """One sentence that names who is waited for, and where."""
        if not self.phase:
            return f"the learners did not finish gathering or sending within {after_s:g} s"
        who = f"rollout worker{'s' if len(self.waiting_for) > 1 else ''} {', '.join(self.waiting_for)}"
        return f"{who} did not finish phase {self.phase} within {after_s:g} s"
