"""What a run writes while it goes: metrics.jsonl, samples.jsonl, evaluations, TensorBoard, Weights & Biases."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from expo_ray.algorithms.properties import GroupProperties
from expo_ray.config.model_shape import model_shape
from expo_ray.config.schema import Config
from expo_ray.driver.actors import Actors
from expo_ray.driver.limits import staleness
from expo_ray.driver.samples import batch_line, sample_lines
from expo_ray.driver.status import Status
from expo_ray.driver.throughput import peak_of, throughput
from expo_ray.evaluation.evaluator import Evaluator
from expo_ray.messages import Group, SyncProof, TrainingBatch, TrainingSample, UpdateReport
from expo_ray.spans import span


class Tracker(Protocol):
    """Somewhere scalars are shown beside metrics.jsonl."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class StepRecord:
    """One step's measurements, gathered while the step runs; without a status they are made beside the loop."""

    def __init__(self, step: int, status: Status | None = None) -> None:
        self.step, self.status = step, status
        self.seconds: dict[str, float] = defaultdict(float)
        self.metrics: dict[str, float] = defaultdict(float)
        self.properties: list[GroupProperties] | None = None
        self.groups: list[Group] = []
        self.samples: list[TrainingSample] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to `time/<name>`, and shows the phase in status.json."""
        began = time.monotonic()
        try:
            with span(name, step=self.step), self.status.phase(name) if self.status else nullcontext():
                yield
        finally:
            self.seconds[name] += time.monotonic() - began

    def count(self, values: dict[str, float]) -> None:
        """Adds numbers to the step's metrics of those names."""
        for name, value in values.items():
            self.metrics[name] += value

    def beside(self, other: "StepRecord") -> None:
        """Takes in what was measured beside the loop: its times are no part of the step's."""
        self.count(other.metrics)
        for name, seconds in other.seconds.items():
            self.seconds[f"beside_{name}"] += seconds

    def finish(self, groups: list[Group], batch: TrainingBatch, update: UpdateReport, proof: SyncProof) -> None:
        """Takes in what the step's phases produced."""
        self.groups, self.samples = groups, batch.samples
        self.metrics |= staleness(groups, self.step)
        self.count(batch.metrics)
        self.metrics |= update.metrics | {
            "algo/beta": batch.beta,
            "tokens/trained": float(update.trained_tokens),
            "sync/version": float(proof.weight_version),
            "sync/seconds": proof.seconds,
            "sync/bytes": float(proof.bytes_sent),
            "sync/max_difference": proof.max_difference,
            "sync/tolerance": proof.tolerance,
            "sync/mean_difference": proof.mean_difference,
            "sync/mean_tolerance": proof.mean_tolerance,
        }

    def usage(self, actors: Actors) -> None:
        """Measures the actors' memory, files and threads, every `logging.usage_every` steps."""
        every = actors.config.logging.usage_every
        if every and self.step % every == 0:
            self.metrics |= actors.usage()


class Recorder:
    """Writes a run's records, a line at a time, and tells the progress display.

    Args:
        config: the run's configuration.
        folder: the run folder.
        trackers: where scalars are shown as well.
        status: shows the step and phase.
        card: name of the learners' GPU; None without one.
    """

    def __init__(
        self, config: Config, folder: Path, trackers: list[Tracker], status: Status, card: str | None = None
    ) -> None:
        self.config, self.folder, self.trackers, self.status = config, folder, trackers, status
        self.shape, self.peak = model_shape(config.model.path), peak_of(config, card)

    @contextmanager
    def step(self, step: int) -> Iterator[StepRecord]:
        """One step: times it, and writes it if it ended well."""
        self.status.step = step
        record = StepRecord(step, self.status)
        began = time.monotonic()
        yield record
        record.seconds["step"] = time.monotonic() - began
        generated = record.metrics["tokens/generated"]
        record.metrics["tokens/per_second"] = generated / record.seconds["step"]
        record.metrics |= throughput(self.config, self.shape, record.samples, generated, record.seconds, self.peak)
        values = dict(sorted(record.metrics.items())) | {f"time/{k}": v for k, v in sorted(record.seconds.items())}
        self._append("metrics.jsonl", {"step": step} | {name: round(value, 8) for name, value in values.items()})
        self._append("batches.jsonl", {"step": step} | batch_line(record.groups))
        for line in sample_lines(record.groups, record.properties, self.config):
            self._append("samples.jsonl", {"step": step} | line)
        for tracker in self.trackers:
            tracker.scalars(step, values)

    def evaluation(self, done: int, evaluator: Evaluator) -> float | None:
        """Evaluates the policy after `done` steps, and writes it to evaluations.jsonl.

        Returns:
            pass@k over all held-out problems, k = eval.samples; None where there are none.
        """
        with self.status.phase("evaluate"):
            found = evaluator.evaluate()
        self._append("evaluations.jsonl", {"steps_done": done} | found.summary())
        scalars = {f"eval/pass@{k}/{level}": v for level, of in found.pass_at_k.items() for k, v in of.items()}
        for tracker in self.trackers:
            tracker.scalars(done, scalars)
        return found.pass_at_k["all"][found.samples] if "all" in found.pass_at_k else None

    def proof(self, proof: SyncProof) -> None:
        """Writes the proof of the sync before the first step to proofs.jsonl."""
        self._append("proofs.jsonl", asdict(proof))

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self.trackers:
            tracker.close()

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_without_nan(line), ensure_ascii=False, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    """What was not measured is null: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
