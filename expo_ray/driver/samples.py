"""The lines of samples.jsonl: a few groups of each step, as a reader wants to see them."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from expo_ray.algorithms.properties import GroupProperties, SampleProperties
from expo_ray.config.schema import Config
from expo_ray.leaks import mentions_given_answer
from expo_ray.messages import Completion, Group, Verdict
from expo_ray.rollout.lengths import sampled_tokens
from expo_ray.verifier.reward import reward


def batch_line(groups: list[Group]) -> dict[str, Any]:
    """What one step consumed: its problems in order, and how much of each was sampled and judged."""
    return {
        "uids": [group.rollout.prompt.problem.uid for group in groups],
        "completions": [len(group.verdicts) for group in groups],
        "explanations": [len(group.explanation_verdicts) for group in groups],
        "tokens": [sampled_tokens(group) for group in groups],
    }


def sample_lines(
    groups: list[Group], properties: list[GroupProperties] | None, config: Config
) -> Iterator[dict[str, Any]]:
    """One line for each completion, explanation and gold solution of the first `logging.samples_per_step` groups."""
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
        for i, (completion, verdict) in enumerate(zip(group.rollout.completions, group.verdicts, strict=True)):
            own = free[i] if i < len(free) else None
            yield about | _line("free", completion, verdict, own, config)
        for i, (explanation, verdict) in enumerate(
            zip(group.rollout.explanations, group.explanation_verdicts, strict=True)
        ):
            own = measured.explanations[i] if measured else None
            line = _line("explanation", explanation, verdict, own, config)
            yield about | line | {"leak": mentions_given_answer(explanation.text)}
        if problem.solution is not None and measured is not None and measured.gold is not None:
            yield about | {"kind": "gold", "text": problem.solution, "properties": asdict(measured.gold)}


def _line(
    kind: str, completion: Completion, verdict: Verdict, measured: SampleProperties | None, config: Config
) -> dict[str, Any]:
    return {
        "kind": kind,
        "text": completion.text,
        "outcome": verdict.outcome,
        "extracted": verdict.extracted,
        "reward": reward(verdict, config.verifier),
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "weight_version": completion.weight_version,
        "rollout_mean_logprob": float(completion.logprobs.mean()) if len(completion.logprobs) else None,
        "properties": asdict(measured) if measured is not None else None,
    }
