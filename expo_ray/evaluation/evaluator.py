"""Samples completions of held-out problems, verifies them, and scores the result."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from expo_ray.config.schema import Config
from expo_ray.evaluation.metrics import CONFIDENCE, ProblemScores, Scores, samples_of, score_problem, scores_of
from expo_ray.messages import Group, Prompt, RolloutRequest
from expo_ray.rollout.fleet import RolloutFleet
from expo_ray.rollout.requests import evaluation_sampling
from expo_ray.verifier.actor import VerifierFleet

_EVALUATION = 3


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation."""

    samples: int
    """Completions per problem, n."""
    groups: list[Group]
    """The verified completions; empty for an evaluation that was read from its file."""
    scored: list[ProblemScores]
    """One for each problem."""

    @cached_property
    def by_level(self) -> dict[str, Scores]:
        """Scores of each level ("1" to "5", or "?" if the data has none) and of "all"; empty without problems."""
        parts = _parts(self.scored, ["?" if problem.level is None else str(problem.level) for problem in self.scored])
        return parts | ({"all": scores_of(self.scored)} if self.scored else {})

    @cached_property
    def by_kind(self) -> dict[str, Scores]:
        """Scores of each kind ("Algebra"), "?" for problems without one; empty if no problem has one."""
        if not any(problem.kind for problem in self.scored):
            return {}
        return _parts(self.scored, [problem.kind or "?" for problem in self.scored])

    @property
    def sets(self) -> dict[str, "Evaluation"]:
        """Each evaluation set on its own, by its name; empty if there is only one."""
        names = sorted({problem.source for problem in self.scored})
        own = {name: [problem for problem in self.scored if problem.source == name] for name in names}
        return {name: replace(self, scored=scored) for name, scored in own.items()} if len(names) > 1 else {}

    @property
    def pass_at_k(self) -> dict[str, dict[int, float]]:
        """Level or "all" -> k -> pass@k in [0, 1]."""
        return {level: {k: e.mean for k, e in of.pass_at_k.items()} for level, of in self.by_level.items()}

    @property
    def problems(self) -> dict[str, int]:
        """Level or "all" -> number of problems."""
        return {level: of.problems for level, of in self.by_level.items()}

    def summary(self) -> dict[str, Any]:
        """The JSON form that is written to evaluation.json, evaluations.jsonl and summary.json."""
        return {
            "samples": self.samples,
            "problems": self.problems,
            "pass_at_k": {level: {str(k): round(v, 6) for k, v in of.items()} for level, of in self.pass_at_k.items()},
            "confidence": CONFIDENCE,
            "by_level": {level: of.summary() for level, of in self.by_level.items()},
            "by_kind": {kind: of.summary() for kind, of in self.by_kind.items()},
            "sets": {name: of.summary() for name, of in self.sets.items()},
        }


class Evaluator:
    """Evaluates the weights that the rollout workers hold.

    Args:
        config: the run's configuration.
        prompts: the held-out prompts.
        rollouts: sample the completions.
        verifiers: verify them.
    """

    def __init__(self, config: Config, prompts: list[Prompt], rollouts: RolloutFleet, verifiers: VerifierFleet) -> None:
        self.config, self.prompts, self.rollouts, self.verifiers = config, prompts, rollouts, verifiers

    def evaluate(self) -> Evaluation:
        """Samples and verifies all prompts at once.

        The seed does not depend on the step, so that evaluations of one run differ only in their weights.
        """
        return summarise(self.grade(self.prompts, 0), self.config.eval.samples, self.config.verifier.name)

    def grade(self, prompts: Sequence[Prompt], chunk: int) -> list[Group]:
        """Samples and verifies `eval.samples` completions of each prompt, seeded by `seed` and `chunk` only."""
        requests = [RolloutRequest(prompt, self.config.eval.samples, 0) for prompt in prompts]
        seed = (self.config.seed, _EVALUATION, chunk)
        return self.verifiers.verify(self.rollouts.generate(requests, evaluation_sampling(self.config), seed))


def summarise(groups: list[Group], samples: int, task: str = "math") -> Evaluation:
    """Scores verified groups.

    Args:
        groups: one for each problem.
        samples: completions in each group.
        task: verifier task of problems that name none, by which answers count as the same vote (majority@k).
    """
    return Evaluation(samples, groups, [_scored(group, task) for group in groups])


def _scored(group: Group, task: str) -> ProblemScores:
    problem = group.rollout.prompt.problem
    return score_problem(samples_of(group), problem.task or task, problem.source)


def _parts(scored: list[ProblemScores], names: list[str]) -> dict[str, Scores]:
    parts: dict[str, list[ProblemScores]] = defaultdict(list)
    for name, problem in zip(names, scored, strict=True):
        parts[name].append(problem)
    return {name: scores_of(parts[name]) for name in sorted(parts)}
