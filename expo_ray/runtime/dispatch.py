"""Requests shared out over named actors: each is answered exactly once, whichever actors are lost meanwhile."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import ray

from expo_ray.runtime.waits import ActorFailed, Deadline, Waiter, wait_any

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A request that a worker has."""

    name: str
    worker: Any
    request: int
    """Its index."""
    deadline: Deadline


class Fleet:
    """Actors of one kind that answer each other's requests, and their replacements.

    A worker serves (it gets requests), or it is a replacement that is still starting. What a replacement needs before
    it may serve is up to the subclass (`admit`).

    Args:
        workers: actor name -> Ray handle.
        replace: ends an actor (name, reason), starts another in its place and returns its handle; raises
            ActorFailed when that actor was lost too often.
        waiter: bounds every wait.
        wait_s: bound on one request.
        start_s: bound on a replacement's start.
    """

    kind: ClassVar[str]
    """What such an actor is called in errors."""

    def __init__(
        self,
        workers: dict[str, Any],
        replace: Callable[[str, str], Any],
        waiter: Waiter,
        wait_s: float,
        start_s: float,
    ) -> None:
        self.workers, self.waiter, self.wait_s, self.start_s = dict(workers), waiter, wait_s, start_s
        self.size = len(workers)
        """Number of workers, lost ones included."""
        self._replace = replace
        self._joining: dict[str, tuple[Any, Any]] = {}
        """Replacements that do not serve yet: name -> handle, and the reference that says it has started."""
        self._guard = threading.RLock()
        """Two threads change who serves: the one that samples ahead, and the one that syncs weights."""

    def admit(self) -> None:
        """Lets replacements serve. Called before requests are handed out; does nothing here."""

    def bring_in(self) -> None:
        """Waits until somebody serves. Called when requests wait and nobody does."""
        self.serve(self.members())

    def dispatch(self, requests: Sequence[T], submit: Callable[[Any, T], Any], what: str) -> list[Any]:
        """Gives each idle worker the next request until all are answered.

        Args:
            requests: what is to be done. The answer to one must not depend on which worker gives it.
            submit: sends a request to a worker (handle, request) and returns the reference of its answer; called
                again, with another worker, when the first one is lost or late.
            what: what is waited for, for errors.

        Returns:
            One answer for each request, in their order.

        Raises:
            ActorFailed: a worker was lost more often than trainer.max_restarts, or refused a request.
            WaitExpired: nobody is left and no replacement came up in time.
        """
        waiting = deque(range(len(requests)))
        running: dict[Any, _UnderWay] = {}
        answers: list[Any] = [None] * len(requests)
        while waiting or running:
            self._hand_out(requests, submit, waiting, running)
            timeout = min(job.deadline.left for job in running.values())
            ready, _ = wait_any(list(running), timeout)
            for ref in ready:
                job = running.pop(ref)
                try:
                    answers[job.request] = self.waiter.take(ref, job.name, what)
                except ActorFailed as error:
                    if error.refused:
                        raise
                    waiting.appendleft(job.request)
                    self.lose(job.name, str(error), job.worker)
            if not ready:
                self._give_up_late(waiting, running, what)
        return answers

    def lose(self, name: str, reason: str, worker: Any) -> None:
        """Takes a worker out of service and starts another in its place. Does nothing if that was done already.

        Args:
            name: its name.
            reason: what was seen.
            worker: the handle that was seen to fail.

        Raises:
            ActorFailed: it was lost too often.
        """
        with self._guard:
            joining = self._joining.get(name, (None, None))[0]
            if worker not in (self.workers.get(name), joining):
                return
            self.workers.pop(name, None)
            handle = self._replace(name, reason)
            self._joining[name] = (handle, handle.ready.remote())

    def members(self) -> dict[str, Any]:
        """Those who serve, and replacements that have started. Waits for a replacement if nobody else is left.

        Raises:
            WaitExpired: none came up within the bound.
        """
        deadline = Deadline(self.start_s)
        while True:
            up = self.started()
            if self.workers or up:
                both = self.workers | up
                return {name: both[name] for name in sorted(both)}
            refs = {ref: name for name, (_, ref) in self._joining.items()}
            if not deadline.left:
                raise self.waiter.expired(sorted(refs.values()), self._no_room(), self.start_s)
            wait_any(list(refs), deadline.left)

    def started(self) -> dict[str, Any]:
        """The replacements that have started; one that failed to start is replaced in its turn."""
        up: dict[str, Any] = {}
        for name, (handle, ref) in list(self._joining.items()):
            if not ray.wait([ref], timeout=0)[0]:
                continue
            try:
                self.waiter.places[name] = self.waiter.take(ref, name, "starting it again")
                up[name] = handle
            except ActorFailed as error:
                self.lose(name, str(error), handle)
        return up

    def serve(self, workers: dict[str, Any]) -> None:
        """Makes these the workers that get requests."""
        with self._guard:
            for name, worker in workers.items():
                if self._joining.get(name, (None, None))[0] is worker:
                    del self._joining[name]
            # A name that is still joining was lost again after the caller looked.
            self.workers = {name: worker for name, worker in workers.items() if name not in self._joining}

    def _hand_out(
        self,
        requests: Sequence[T],
        submit: Callable[[Any, T], Any],
        waiting: deque[int],
        running: dict[Any, _UnderWay],
    ) -> None:
        """Leaves at least one request running."""
        self.admit()
        busy = {job.name for job in running.values()}
        while True:
            if not self.workers and not running:
                self.bring_in()
            for name, worker in dict(self.workers).items():
                if waiting and name not in busy:
                    number = waiting.popleft()
                    ref = submit(worker, requests[number])
                    running[ref] = _UnderWay(name, worker, number, Deadline(self.wait_s))
            if running:  # else the other thread took the only worker out of service just now
                return

    def _give_up_late(self, waiting: deque[int], running: dict[Any, _UnderWay], what: str) -> None:
        for ref, job in list(running.items()):
            if not job.deadline.left:
                del running[ref]
                waiting.appendleft(job.request)
                self.lose(job.name, str(self.waiter.expired([job.name], what, self.wait_s)), job.worker)

    def _no_room(self) -> str:
        have = {name: amount for name, amount in ray.cluster_resources().items() if not name.startswith("node:")}
        return (
            f"no {self.kind} worker is left and none could be started again (add a node, or raise trainer.start_s; "
            f"the cluster has {have})"
        )
