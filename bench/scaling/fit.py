"""The model's costs from measured runs, and how well they predict others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np

from bench.scaling.events import (
    EngineCosts,
    Simulation,
    StepCosts,
    StepWork,
    largest_share,
    seconds_per_step,
)
from bench.scaling.measured import MeasuredRun, Workload

DRAWS = 5
"""Steps drawn of a run to know its mean work."""
COUNTING = EngineCosts(per_iteration=1.0)


@dataclass(frozen=True)
class FittedCosts:
    """Seconds, from least squares with no negative cost; on one machine and for one model."""

    engine: EngineCosts
    update: tuple[float, float]
    """Once, and per thousand tokens and forward pass of the fullest rank."""
    score: tuple[float, float]
    sync: float
    verify_batch: float
    verify_item: float
    rest: float

    def of(self, work: Workload) -> StepCosts:
        """The costs of a run with this work."""

        def update(tokens: int) -> float:
            return self.update[0] + self.update[1] * tokens * work.passes / 1000

        return StepCosts(
            engine=self.engine,
            max_sequences=work.max_sequences,
            ranks=work.ranks,
            update=update,
            score=lambda tokens: self.score[0] + self.score[1] * tokens / 1000,
            sync=self.sync,
            verify_batch=self.verify_batch,
            verify_item=self.verify_item,
            rest=self.rest,
            async_steps=work.async_steps,
        )


@dataclass(frozen=True)
class Prediction:
    """A run's seconds a step, predicted and measured."""

    name: str
    predicted: dict[str, float]
    measured: dict[str, float]

    @property
    def error(self) -> float:
        """Relative error of the whole step."""
        return self.predicted["step"] / self.measured["step"] - 1


def iterations(work: StepWork, max_sequences: int) -> float:
    """Decoding iterations of the engine that needs most, from the event model itself."""
    costs = StepCosts(engine=COUNTING, max_sequences=max_sequences, ranks=1, update=lambda tokens: 0.0)
    return Simulation(costs, [work]).run()[0].generate


def fit(runs: Sequence[MeasuredRun]) -> FittedCosts:
    """Costs from runs on one machine. Relative errors are made small, so that short steps count as much as long ones.

    ValueError: no runs.
    """
    if not runs:
        raise ValueError("nothing to fit: no run")
    engine = _least(runs, "generate", _engine_features)
    update = _least(runs, "update", lambda work, step: (1.0, _fullest(step.trained, work) * work.passes / 1000))
    score = _least(runs, "properties", lambda work, step: (1.0, _fullest(step.scored, work) / 1000))
    verify = _least(runs, "verify", lambda work, step: (1.0, float(len(step.sampled))))
    rest = [step["step"] - sum(v for k, v in step.items() if k != "step") for run in runs for step in run.steps]
    return FittedCosts(
        engine=EngineCosts(per_batch=engine[0], per_iteration=engine[1], per_sequence=engine[2]),
        update=(update[0], update[1]),
        score=(score[0], score[1]),
        sync=median(step["sync"] for run in runs for step in run.steps),
        verify_batch=verify[0],
        verify_item=verify[1],
        rest=median(rest),
    )


def predict(costs: FittedCosts, run: MeasuredRun, seed: int = 1) -> Prediction:
    """A run's mean step, from its work alone."""
    steps = [run.work.step(number, seed) for number in range(len(run.steps) + 1)]
    times = Simulation(costs.of(run.work), steps).run()
    phases = ("generate", "verify", "properties", "update", "sync")
    predicted = {phase: fmean(getattr(step, phase) for step in times[1:]) for phase in phases}
    measured = {phase: run.mean(phase) for phase in phases}
    return Prediction(run.name, predicted | {"step": seconds_per_step(times)}, measured | {"step": run.mean("step")})


def _engine_features(work: Workload, step: StepWork) -> tuple[float, float, float]:
    tokens = max(sum(one.tokens for one in share) for share in step.shares)
    return 1.0, iterations(step, work.max_sequences), float(tokens)


def _fullest(lengths: Sequence[int], work: Workload) -> int:
    return largest_share(lengths, work.ranks)


def _least(
    runs: Sequence[MeasuredRun], phase: str, features: Callable[[Workload, StepWork], tuple[float, ...]]
) -> list[float]:
    """Non-negative least squares of a phase's seconds over its features; a run is one row, its mean work and median."""
    from scipy.optimize import nnls

    rows, seconds = [], []
    for run in runs:
        found = [step[phase] for step in run.steps if phase in step]
        if not found:
            continue
        work = replace(run.work, properties_every=1)
        drawn = np.mean([features(work, work.step(number, seed=0)) for number in range(DRAWS)], axis=0)
        rows.append(drawn / median(found))
        seconds.append(1.0)
    if not rows:
        return [0.0] * len(features(runs[0].work, replace(runs[0].work, properties_every=1).step(0, seed=0)))
    return [float(value) for value in nnls(np.array(rows), np.array(seconds))[0]]
