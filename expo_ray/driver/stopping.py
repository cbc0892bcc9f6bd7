"""Ctrl-C and SIGTERM once: the run ends after the step it is in, with a checkpoint."""

import signal
import sys
from types import FrameType


class StopSignal:
    """While it is entered, SIGINT and SIGTERM set `requested`; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        print(
            f"{signal.Signals(number).name}: stopping after this step, with a checkpoint (Ctrl-C again: at once)",
            file=sys.stderr,
        )
