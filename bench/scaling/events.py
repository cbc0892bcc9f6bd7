"""Discrete-event model of training steps: engines, verification, properties, update, sync (docs/scaling.md).

The loop is that of `expo_ray.driver.loop`: with `async_steps` 0 each phase waits for the one before; with k,
completions of step s may be sampled with weights that have seen s - k updates. A sync in the middle of a generation
holds the engines up for its seconds and lets them go on (partial rollouts are kept).
"""

import heapq
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy


@dataclass(frozen=True)
class EngineCosts:
    """Seconds of one engine's work."""

    per_iteration: float
    """Each decoding iteration, whatever runs in it: scheduling, reading the weights."""
    per_sequence: float = 0.0
    """Each running sequence in each iteration."""
    per_context_token: float = 0.0
    """Each token in the running sequences' caches, in each iteration."""
    per_prompt_token: float = 0.0
    """Each token of a prompt when it is admitted."""
    per_batch: float = 0.0
    """Once a batch of requests: sending, decoding texts, and what else does not depend on lengths."""


@dataclass(frozen=True)
class Sampled:
    """A completion to be sampled."""

    prompt_tokens: int
    tokens: int


@dataclass(frozen=True)
class StepWork:
    """What one step has to do: completions share by share, and the samples of its update."""

    shares: tuple[tuple[Sampled, ...], ...]
    """One tuple for each engine, in the order in which it is asked."""
    trained: tuple[int, ...]
    """Tokens of each training sample, prompt included."""
    scored: tuple[int, ...] = ()
    """Tokens of each sequence whose properties are measured at this step."""

    @property
    def sampled(self) -> list[Sampled]:
        """All completions."""
        return [sequence for share in self.shares for sequence in share]


@dataclass(frozen=True)
class StepCosts:
    """Everything a step takes, beside its work."""

    engine: EngineCosts
    max_sequences: int
    """Sequences that an engine decodes at once."""
    ranks: int
    update: Callable[[int], float]
    """Seconds of the update, by the tokens of the rank that has most."""
    score: Callable[[int], float] = field(default=lambda tokens: 0.0)
    """Seconds of measuring properties, by the tokens of the rank that has most."""
    sync: float = 0.0
    verify_batch: float = 0.0
    """Seconds once a step."""
    verify_item: float = 0.0
    """Seconds of one answer in one verifier process."""
    verify_processes: int = 1
    verify_overlapped: bool = False
    """Answers are graded as they end, beside the sampling."""
    rest: float = 0.0
    """Seconds of a step outside all phases: the batch is made, records are written."""
    async_steps: int = 0


@dataclass
class StepTimes:
    """Moments of one step, and seconds of its phases."""

    began: float = 0.0
    ended: float = 0.0
    generate: float = 0.0
    verify: float = 0.0
    """What grading took after the last completion had ended."""
    properties: float = 0.0
    update: float = 0.0
    sync: float = 0.0
    engine_busy: float = 0.0
    """Mean over engines of the seconds in which they decoded, within `generate`."""


class Simulation:
    """Runs steps in simulated time.

    Args:
        costs: what things take.
        work: the steps, in order.
    """

    def __init__(self, costs: StepCosts, work: Sequence[StepWork]) -> None:
        self.costs, self.work = costs, work
        self.env = simpy.Environment()
        self.times = [StepTimes() for _ in work]
        self.version = 0
        self._new_version = self.env.event()
        self._ready: Any = simpy.Store(self.env)
        self._hold_up = [0.0 for _ in range(max(len(step.shares) for step in work))]
        self._busy = [False for _ in self._hold_up]
        self._graders: Any = simpy.Resource(self.env, capacity=costs.verify_processes)

    def run(self) -> list[StepTimes]:
        """All steps' times. A step ends when its weights are with the engines and its record is written."""
        self.env.process(self._sample_all())
        self.env.run(until=self.env.process(self._learn_all()))
        return self.times

    def _sample_all(self) -> Generator[Any, Any, None]:
        for number, step in enumerate(self.work):
            while self.version < number - self.costs.async_steps:
                yield self._new_version
            times = self.times[number]
            times.began = self.env.now
            grading: list[Any] = []
            engines = [self.env.process(self._engine(i, share, times, grading)) for i, share in enumerate(step.shares)]
            yield self.env.all_of(engines)
            times.generate = self.env.now - times.began
            times.engine_busy /= len(engines)
            after = self.env.now
            rounds = 0 if self.costs.verify_overlapped else -(-len(step.sampled) // self.costs.verify_processes)
            yield self.env.all_of(grading)
            yield self.env.timeout(rounds * self.costs.verify_item + self.costs.verify_batch)
            times.verify = self.env.now - after
            yield self._ready.put(number)

    def _learn_all(self) -> Generator[Any, Any, None]:
        for number, step in enumerate(self.work):
            yield self._ready.get()
            times, costs = self.times[number], self.costs
            times.properties = costs.score(largest_share(step.scored, costs.ranks)) if step.scored else 0.0
            times.update = costs.update(largest_share(step.trained, costs.ranks))
            yield self.env.timeout(times.properties + times.update)
            for index, busy in enumerate(self._busy):
                self._hold_up[index] += costs.sync if busy else 0.0
            yield self.env.timeout(costs.sync + costs.rest)
            times.sync, times.ended = costs.sync, self.env.now
            self.version = number + 1
            told, self._new_version = self._new_version, self.env.event()
            told.succeed()

    def _engine(
        self, index: int, share: Sequence[Sampled], times: StepTimes, grading: list[Any]
    ) -> Generator[Any, Any, None]:
        """Continuous batching: a place that falls free is taken at the next iteration by the next sequence asked for.

        Between two ends nothing changes but the caches' length, so the model goes from end to end.
        """
        began, held = self.env.now, 0.0
        costs, waiting = self.costs.engine, deque(share)
        running: list[tuple[int, int]] = []  # (iteration of the last token, prompt tokens - iteration of the first)
        iteration, context = 0, 0
        self._busy[index] = True
        yield self.env.timeout(costs.per_batch)
        while waiting or running:
            prefill = 0
            while waiting and len(running) < self.costs.max_sequences:
                admitted = waiting.popleft()
                prefill += admitted.prompt_tokens
                context += admitted.prompt_tokens
                heapq.heappush(running, (iteration + admitted.tokens, admitted.prompt_tokens - iteration))
            many, steps = len(running), running[0][0] - iteration
            cached = steps * context + many * steps * (steps + 1) // 2
            yield self.env.timeout(
                prefill * costs.per_prompt_token
                + steps * (costs.per_iteration + many * costs.per_sequence)
                + cached * costs.per_context_token
            )
            iteration += steps
            context += many * steps
            while running and running[0][0] == iteration:
                last, offset = heapq.heappop(running)
                context -= last + offset
                if self.costs.verify_overlapped:
                    grading.append(self.env.process(self._grade()))
            while self._hold_up[index] > 0:
                stop, self._hold_up[index] = self._hold_up[index], 0.0
                held += stop
                yield self.env.timeout(stop)
        self._busy[index] = False
        times.engine_busy += self.env.now - began - held

    def _grade(self) -> Generator[Any, Any, None]:
        with self._graders.request() as place:
            yield place
            yield self.env.timeout(self.costs.verify_item)


def largest_share(lengths: Sequence[int], ranks: int) -> int:
    """Tokens of the fullest rank when samples are dealt longest first, each to the emptiest rank."""
    if ranks >= len(lengths):
        return max(lengths, default=0)
    filled = [0] * ranks
    for length in sorted(lengths, reverse=True):
        heapq.heapreplace(filled, filled[0] + length)
    return max(filled)


def seconds_per_step(times: Sequence[StepTimes], warm: int = 1) -> float:
    """Mean seconds between the ends of steps, the first `warm` of them left out.

    ValueError: no step is left.
    """
    if len(times) <= warm:
        raise ValueError(f"{len(times)} steps leave none behind {warm} warm ones")
    return (times[-1].ended - times[warm - 1].ended) / (len(times) - warm)
