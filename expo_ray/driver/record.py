"""What a run writes at each step: metrics.jsonl, batches.jsonl, samples.jsonl, evaluations.jsonl, and its trackers."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expo_ray.algorithms.properties import GroupProperties, SampleProperties
from expo_ray.algorithms.rewards import completion_reward, scores_of
from expo_ray.config.schema import Config
from expo_ray.data.stream import pass_rate
from expo_ray.driver.actors import Actors
from expo_ray.driver.stopping import staleness
from expo_ray.driver.throughput import peak_of, throughput
from expo_ray.driver.trackers import Tracker, close_all
from expo_ray.evaluation.evaluator import Evaluator
from expo_ray.files import append_lines
from expo_ray.leaks import mentions_given_answer
from expo_ray.messages import Completion, Group, SyncProof, TrainingBatch, TrainingSample, UpdateReport, Verdict
from expo_ray.preflight.model_folder import ModelShape
from expo_ray.rewards.functions import VERIFIER, reward
from expo_ray.rollout.requests import sampled_tokens
from expo_ray.runtime.journal import Status
from expo_ray.runtime.spans import span


def batch_line(groups: list[Group]) -> dict[str, Any]:
    """The line of batches.jsonl: one step's problems in order, with the completions and tokens sampled for each,
    and the share of right completions (None: none was decided)."""
    return {
        "uids": [group.rollout.prompt.problem.uid for group in groups],
        "completions": [len(group.verdicts) for group in groups],
        "explanations": [len(group.explanation_verdicts) for group in groups],
        "tokens": [sampled_tokens(group) for group in groups],
        "pass_rates": [pass_rate(group) for group in groups],
    }


def sample_lines(
    groups: list[Group], properties: list[GroupProperties] | None, config: Config
) -> Iterator[dict[str, Any]]:
    """Yields a line for each completion, explanation and gold solution of the first `logging.samples_per_step`
    groups."""
    for index, group in enumerate(groups[: config.logging.samples_per_step]):
        measured = properties[index] if properties is not None else None
        problem = group.rollout.prompt.problem
        about = {
            "uid": problem.uid,
            "level": problem.level,
            "question": problem.question,
            "answers": list(problem.answers),
        }
        free = measured.free if measured else []
        yield from (about | line for line in _completion_lines("free", group, config, free))
        if group.guided is not None:
            yield from (about | line for line in _completion_lines("guided", group.guided, config, []))
        for i, (explanation, verdict) in enumerate(
            zip(group.rollout.explanations, group.explanation_verdicts, strict=True)
        ):
            own = measured.explanations[i] if measured else None
            line = _line("explanation", explanation, verdict, reward(verdict, config.verifier), own)
            yield about | line | {"leak": mentions_given_answer(explanation.text)}
        if problem.solution is not None and measured is not None and measured.gold is not None:
            yield about | {"kind": "gold", "text": problem.solution, "properties": asdict(measured.gold)}


def _completion_lines(
    kind: str, group: Group, config: Config, measured: list[SampleProperties]
) -> Iterator[dict[str, Any]]:
    rows = zip(group.rollout.completions, group.verdicts, scores_of(group), strict=True)
    for i, (completion, verdict, scores) in enumerate(rows):
        own = measured[i] if i < len(measured) else None
        line = _line(kind, completion, verdict, completion_reward(verdict, scores, config), own)
        by_function = {name: asdict(score) for name, score in scores.items()}
        verified = {VERIFIER: {"value": reward(verdict, config.verifier), "failure": "", "ms": verdict.ms}}
        several = by_function or config.reward.weights  # else the line says it all
        yield line | ({"rewards": verified | by_function} if several else {})


def _line(
    kind: str, completion: Completion, verdict: Verdict, earned: float | None, measured: SampleProperties | None
) -> dict[str, Any]:
    return {
        "kind": kind,
        "text": completion.text,
        "outcome": verdict.outcome,
        "extracted": verdict.extracted,
        "reward": earned,
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "weight_version": completion.weight_version,
        "rollout_mean_logprob": float(completion.logprobs.mean()) if len(completion.logprobs) else None,
        "properties": asdict(measured) if measured is not None else None,
    }


class StepRecord:
    """Collects one step's measurements.

    Args:
        step: the step.
        status: shows the phases; None for a step that is sampled ahead, in a background thread.
    """

    def __init__(self, step: int, status: Status | None = None) -> None:
        self.step, self.status = step, status
        self.seconds: dict[str, float] = defaultdict(float)
        self.metrics: dict[str, float] = defaultdict(float)
        self.properties: list[GroupProperties] | None = None
        self.groups: list[Group] = []
        self.samples: list[TrainingSample] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the body to `time/<name>`, and shows the phase in status.json."""
        began = time.monotonic()
        try:
            with span(name, step=self.step), self.status.phase(name) if self.status else nullcontext():
                yield
        finally:
            self.seconds[name] += time.monotonic() - began

    def count(self, values: dict[str, float]) -> None:
        """Adds each value to the step's metric of that name."""
        for name, value in values.items():
            self.metrics[name] += value

    def merge_ahead(self, other: "StepRecord") -> None:
        """Merges what was sampled for later steps' prompts: counts under `ahead/`, and its time."""
        self.count({f"ahead/{name}": value for name, value in other.metrics.items()})
        self.merge_seconds(other)

    def merge_seconds(self, other: "StepRecord") -> None:
        """Adds the time of the other's phases."""
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds

    def merge_background(self, other: "StepRecord") -> None:
        """Merges the background sampler's metrics; its time is not part of the step time."""
        self.count(other.metrics)
        for name, seconds in other.seconds.items():
            self.seconds[f"beside_{name}"] += seconds

    def finish(self, groups: list[Group], batch: TrainingBatch, update: UpdateReport, proof: SyncProof) -> None:
        """Adds what the step's phases produced to the metrics."""
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
    """Writes a run's records a line at a time and passes scalars on to the trackers.

    Args:
        config: the run's configuration.
        folder: the run folder.
        trackers: also get the scalars.
        status: shows the step and phase.
        shape: the policy's dimensions; None if they are not known.
        card: name of the learners' GPU; None without one.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        trackers: list[Tracker],
        status: Status,
        shape: ModelShape | None,
        card: str | None = None,
    ) -> None:
        self.config, self.folder, self.trackers, self.status = config, folder, trackers, status
        self.shape, self.peak = shape, peak_of(config, card)

    @contextmanager
    def step(self, step: int) -> Iterator[StepRecord]:
        """Times a step, and writes its records unless it raises."""
        self.status.step = step
        record = StepRecord(step, self.status)
        began = time.monotonic()
        yield record  # without a finally: a step that raises is repeated from the checkpoint, and leaves no line
        record.seconds["step"] = time.monotonic() - began
        generated = record.metrics["tokens/generated"] + record.metrics.get("ahead/tokens/generated", 0.0)
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
        """Evaluates the policy after `done` steps and appends the result to evaluations.jsonl.

        Returns:
            pass@k over all held-out problems, k = eval.samples; None if there are none.
        """
        with self.status.phase("evaluate"):
            found = evaluator.evaluate()
        self._append("evaluations.jsonl", {"steps_done": done} | found.summary())
        scalars = {f"eval/pass@{k}/{level}": v for level, of in found.pass_at_k.items() for k, v in of.items()}
        for name, of_set in found.sets.items():
            by_level = of_set.pass_at_k.items()
            scalars |= {f"eval/{name}/pass@{k}/{level}": v for level, of in by_level for k, v in of.items()}
        for tracker in self.trackers:
            tracker.scalars(done, scalars)
        return found.pass_at_k["all"][found.samples] if "all" in found.pass_at_k else None

    def proof(self, proof: SyncProof) -> None:
        """Appends the proof of the sync before the first step to proofs.jsonl."""
        self._append("proofs.jsonl", asdict(proof))

    def close(self) -> None:
        """Closes the trackers."""
        close_all(self.trackers)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        append_lines(self.folder / name, [line])
