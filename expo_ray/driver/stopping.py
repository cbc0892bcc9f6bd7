"""What ends a run early or hurries its checkpoint: Ctrl-C, SIGTERM, and nodes that are about to be taken away."""

import signal
import sys
from types import FrameType

from expo_ray.driver.actors import Actors


class StopSignal:
    """While it is entered, SIGINT and SIGTERM set `requested`; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._told: set[str] = set()

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def preempted(self, actors: Actors) -> bool:
        """Whether Ray has announced, since the last call, that a node with actors of ours is given up."""
        fresh = [name for name in actors.draining() if name not in self._told]
        if fresh:
            self._told |= set(fresh)
            actors.events.note("preempted", f"the nodes of {', '.join(fresh)} are given up: checkpoint now")
        return bool(fresh)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        print(
            f"{signal.Signals(number).name}: stopping after this step, with a checkpoint (Ctrl-C again: at once)",
            file=sys.stderr,
        )
