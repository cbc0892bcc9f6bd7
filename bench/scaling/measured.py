"""Run folders as the model sees them: what each step had to do, and what its phases took."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.scaling.events import Sampled, StepWork
from expo_ray.config.errors import DataError
from expo_ray.reporting.runs import read_run

PHASES = ("generate", "verify", "properties", "update", "sync")
MODELLED = ("grpo", "sft_gt_grpo", "exp_grpo")
MEASURED_FREE = 2
"""Free completions of a group that properties are measured on (expo_ray.algorithms.properties)."""


@dataclass(frozen=True)
class Workload:
    """What the steps of a run have to do; nothing of it is a time."""

    prompts: int
    samples: int
    explanations: int
    engines: int
    max_sequences: int
    ranks: int
    prompt_tokens: int
    free_lengths: tuple[int, ...]
    """Lengths of free completions, to draw from."""
    explanation_lengths: tuple[int, ...]
    extra_per_prompt: int
    """Training samples of a prompt beside its free completions."""
    extra_tokens: int
    """Tokens of each of them."""
    passes: float
    """Forward passes that an update's cost counts for: 3 for forward and backward, 1 more with a reference policy."""
    properties_every: int
    async_steps: int

    def step(self, number: int, seed: int) -> StepWork:
        """A step's work, its lengths drawn from those of the run."""
        source = random.Random(f"{seed}/{number}")
        prompts = [
            [Sampled(self.prompt_tokens, source.choice(self.free_lengths)) for _ in range(self.samples)]
            + [Sampled(self.prompt_tokens, source.choice(self.explanation_lengths)) for _ in range(self.explanations)]
            for _ in range(self.prompts)
        ]
        # As RolloutFleet deals: request i goes to share i modulo their number.
        shares = tuple(
            tuple(sequence for prompt in prompts[engine :: self.engines] for sequence in prompt)
            for engine in range(min(self.engines, self.prompts))
        )
        trained = [self.prompt_tokens + one.tokens for prompt in prompts for one in prompt[: self.samples]]
        trained += [self.prompt_tokens + self.extra_tokens] * (self.extra_per_prompt * self.prompts)
        due = self.properties_every > 0 and number % self.properties_every == 0
        scored = 2 * (self.explanations + 1 + min(MEASURED_FREE, self.samples)) * self.prompts if due else 0
        mean = self.prompt_tokens + round(fmean(self.free_lengths))
        return StepWork(shares, tuple(trained), (mean,) * scored)


@dataclass(frozen=True)
class MeasuredRun:
    """One run: its work, and the seconds of its steps."""

    name: str
    work: Workload
    steps: tuple[dict[str, float], ...]
    """A dictionary a step: seconds by phase, and of the whole `step`; the first, warm-up, step left out."""

    def mean(self, phase: str) -> float:
        """Mean seconds of a phase over steps; a step without it took 0."""
        return fmean(step.get(phase, 0.0) for step in self.steps)


def read_measured(folder: Path) -> MeasuredRun:
    """Reads a run folder.

    Raises:
        DataError: no run folder, an algorithm that trains on other samples than a group's, fewer than three steps,
            or no samples to take lengths from.
    """
    run = read_run(folder)
    if run.config.algo.name not in MODELLED:
        raise DataError(f"{folder}: algo.name={run.config.algo.name} is not modelled; use one of {', '.join(MODELLED)}")
    if len(run.metrics) < 3:
        raise DataError(f"{folder} has {len(run.metrics)} steps; three are the least to learn from")
    config, lines = run.config, run.metrics[1:]
    pools = _lengths(folder / "samples.jsonl")
    if "free" not in pools:
        raise DataError(f"{folder}/samples.jsonl has no free completion: set logging.samples_per_step to 1 or more")
    extra, extra_tokens = _extra(config, lines)
    work = Workload(
        prompts=config.trainer.prompts_per_step,
        samples=config.rollout.samples_per_prompt,
        explanations=config.rollout.explanations_per_prompt,
        engines=config.rollout.workers,
        max_sequences=config.rollout.max_sequences,
        ranks=config.learner.ranks,
        prompt_tokens=pools["prompt"][0],
        free_lengths=_scaled(pools["free"], fmean(line["completions/mean_tokens"] for line in lines)),
        explanation_lengths=pools.get("explanation", ()) or pools["free"],
        extra_per_prompt=extra,
        extra_tokens=extra_tokens,
        passes=4.0 if _has_reference(config) else 3.0,
        properties_every=config.algo.properties_every,
        async_steps=config.trainer.get("async_steps", 0),
    )
    seconds = tuple(
        {name: line[f"time/{name}"] for name in (*PHASES, "step") if f"time/{name}" in line} for line in lines
    )
    return MeasuredRun(str(folder), work, seconds)


def _lengths(file: Path) -> dict[str, tuple[int, ...]]:
    """Token counts of the recorded completions by kind, and under `prompt` the mean of the questions' characters / 2.

    A prompt's own tokens are not recorded; prefill is a small part of sampling, so half its characters will do.
    """
    found: dict[str, list[int]] = {}
    questions = []
    for line in file.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        if sample["kind"] in ("free", "explanation"):
            found.setdefault(sample["kind"], []).append(sample["tokens"])
            questions.append(len(sample["question"]))
    return {kind: tuple(values) for kind, values in found.items()} | {
        "prompt": (max(1, round(fmean(questions or [2]) / 2)),)
    }


def _scaled(lengths: Sequence[int], mean: float) -> tuple[int, ...]:
    """Lengths with the mean that all completions of the run had: the recorded ones are a few of each step."""
    factor = mean / fmean(lengths)
    return tuple(max(1, round(length * factor)) for length in lengths)


def _has_reference(config: Any) -> bool:
    algo = config.algo
    return bool(algo.kl_coef) or (algo.name == "exp_grpo" and bool(algo.kl_conditioned_coef))


def _extra(config: Any, lines: list[dict[str, Any]]) -> tuple[int, int]:
    """Training samples of a prompt beside its free completions, and the tokens of each."""
    algo, rollout, prompts = config.algo, config.rollout, config.trainer.prompts_per_step
    each = {"grpo": 0, "sft_gt_grpo": 1, "exp_grpo": rollout.explanations_per_prompt}[algo.name]
    if algo.name == "exp_grpo" and algo.kl_conditioned_coef:
        each *= 2
    free = fmean(line["completions/mean_tokens"] * line["completions/total"] for line in lines)
    rest = fmean(line["tokens/trained"] for line in lines) - free
    return (each, max(1, round(rest / (each * prompts)))) if each else (0, 0)
