"""One vLLM engine that several threads use: it samples step by step, and its weights may change between two steps."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class EngineStuck(RuntimeError):
    """Another thread did not leave the engine within the bound."""


class EngineLoop:
    """Takes turns on an engine that lives in this process (`vllm.LLM` without multiprocessing).

    vLLM's own `LLM.generate` holds the engine until everything is sampled. Here each engine step is a turn of its
    own, so that a weight update, or a probe, gets in between; requests under way are kept.

    Args:
        llm: the engine.
        wait_s: bound on waiting for a turn.
        priorities: it schedules by priority, so that a probe need not wait for all that is under way.
        stream: the CUDA stream that it was built on, for whichever thread has the turn; None without a GPU.
    """

    def __init__(self, llm: Any, wait_s: float, priorities: bool = False, stream: Any = None) -> None:
        self.llm, self.wait_s, self.priorities, self.stream = llm, wait_s, priorities, stream
        self.paused = False
        self._door, self._engine = threading.Lock(), threading.Lock()
        self._finished: dict[str, Any] = {}
        self._numbers = itertools.count()

    @contextmanager
    def turn(self, in_pause: bool = False) -> Iterator[Any]:
        """The engine, for this thread alone; between `pause` and `resume` nobody gets it.

        Args:
            in_pause: but for the one who keeps the others out.

        Raises:
            EngineStuck: it was not free within the bound.
        """
        self.take_stream()
        if in_pause and self.paused:
            yield self.llm
            return
        self._enter()
        try:
            yield self.llm
        finally:
            self._engine.release()

    def take_stream(self) -> None:
        """Lets this thread work on the engine's stream: one that joins an NCCL group gets another from vLLM, for which
        the engine's copies do not wait."""
        if self.stream is not None:
            import torch

            torch.cuda.set_stream(self.stream)

    def pause(self) -> None:
        """Keeps everybody out until `resume`, which may come from another thread. Requests under way stay.

        Raises:
            EngineStuck: a step did not end within the bound.
        """
        if not self.paused:
            self._enter()
            self.paused = True

    def resume(self) -> None:
        """Sampling goes on where it stood."""
        if self.paused:
            self.paused = False
            self._engine.release()

    @property
    def busy(self) -> bool:
        """Whether requests are under way; for a thread that has the turn."""
        return bool(self.llm.llm_engine.has_unfinished_requests())

    def submit(self, prompts: Sequence[Any], params: Sequence[Any], first: bool = False) -> list[str]:
        """Hands requests to the engine; for a thread that has the turn. Returns their ids.

        Args:
            prompts: vLLM's prompts.
            params: the SamplingParams of each; `output_kind` must be FINAL_ONLY.
            first: before all that waits.
        """
        ids = [str(next(self._numbers)) for _ in prompts]
        priority = -1 if first and self.priorities else 0
        for request, prompt, wanted in zip(ids, prompts, params, strict=True):
            self.llm.llm_engine.add_request(request, prompt, wanted, priority=priority)
        return ids

    def results(self, requests: Sequence[str], in_pause: bool = False) -> list[Any]:
        """Steps the engine until these requests are finished; returns vLLM's outputs in their order.

        Args:
            requests: their ids.
            in_pause: as in `turn`.

        Raises:
            RuntimeError: the engine has nothing left to do and a request is not finished.
        """
        wanted = set(requests)
        while True:
            with self.turn(in_pause) as llm:
                if wanted <= self._finished.keys():
                    return [self._finished.pop(request) for request in requests]
                if not self.busy:
                    missing = sorted(wanted - self._finished.keys())
                    raise RuntimeError(f"the engine has ended without requests {', '.join(missing[:5])}")
                for output in llm.llm_engine.step():
                    if output.finished:
                        self._finished[output.request_id] = output

    def _enter(self) -> None:
        # A lock alone is not fair: the thread that samples would take it again at once. Who waits at the door is next.
        if not self._door.acquire(timeout=self.wait_s):
            raise EngineStuck(f"the engine was not free within {self.wait_s:.0f} s")
        try:
            if not self._engine.acquire(timeout=self.wait_s):
                raise EngineStuck(f"the engine was not free within {self.wait_s:.0f} s")
        finally:
            self._door.release()
