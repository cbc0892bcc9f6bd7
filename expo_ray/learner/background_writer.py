"""DeepSpeed's writer of checkpoint files, in a thread of its own, with errors kept instead of raised."""

import copy
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine


class BackgroundWriter(TorchCheckpointEngine):
    """A checkpoint engine (deepspeed.runtime.checkpoint_engine) whose files are complete when `problems` says so.

    An error while writing is no exception: on one rank alone that would leave the others waiting in DeepSpeed's
    barriers. It is reported by `problems`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.background = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._jobs: list[Future[None]] = []

    @classmethod
    def install(cls, engine: Any) -> Self:
        """Makes this the writer of a DeepSpeed engine."""
        writer = cls()
        engine.checkpoint_engine = writer
        # It copies its conversion script beside each checkpoint; the exported policy makes that needless.
        engine._copy_recovery_script = lambda _folder: None
        return writer

    def save(self, state_dict: Any, path: str) -> None:
        """Writes a state, or copies it to host memory and writes it later (`background`)."""
        held = _copied(state_dict) if self.background else state_dict
        self.submit(lambda: _write(held, path))

    def submit(self, write: Callable[[], None]) -> None:
        """Runs a write after those before it; at once unless `background`."""
        job = self._pool.submit(write)
        self._jobs.append(job)
        if not self.background:
            job.exception()

    def problems(self, wait: bool) -> list[str] | None:
        """What could not be written since the last answer; None while something still is being written."""
        if not wait and not all(job.done() for job in self._jobs):
            return None
        found = [repr(error) for job in self._jobs if (error := job.exception()) is not None]
        self._jobs = []
        return found


def _write(state: Any, path: str) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _copied(state: Any) -> Any:
    """The same structure with every tensor copied to host memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        held = copy.copy(state)
        for key, value in state.items():
            held[key] = _copied(value)
        return held
    if isinstance(state, list | tuple) and type(state) in (list, tuple):
        return type(state)(_copied(value) for value in state)
    return state
