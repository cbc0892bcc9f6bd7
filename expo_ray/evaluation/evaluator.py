"""Samples held-out problems with the rollout workers and has the verifier grade them."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from expo_ray.config.schema import Config
from expo_ray.evaluation.pass_at_k import pass_at_k
from expo_ray.messages import Group, Prompt
from expo_ray.rollout.fleet import RolloutFleet
from expo_ray.rollout.request import RolloutRequest, evaluation_sampling
from expo_ray.verifier.fleet import VerifierFleet

_EVALUATION = 3


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    samples: int
    """Completions per problem, n."""
    groups: list[Group]
    pass_at_k: dict[str, dict[int, float]]
    """Level ("1".. "5", "?" where the data has none, "all") -> k -> pass@k in [0, 1]."""
    problems: dict[str, int]
    """Level -> number of problems."""

    def summary(self) -> dict[str, Any]:
        """The JSON form, as it stands in summary.json."""
        return {
            "samples": self.samples,
            "problems": self.problems,
            "pass_at_k": {level: {str(k): round(v, 6) for k, v in of.items()} for level, of in self.pass_at_k.items()},
        }


class Evaluator:
    """Args:
    config: the run's configuration.
    prompts: the held-out prompts.
    rollouts: who samples.
    verifiers: who grades.
    """

    def __init__(self, config: Config, prompts: list[Prompt], rollouts: RolloutFleet, verifiers: VerifierFleet) -> None:
        self.config, self.prompts, self.rollouts, self.verifiers = config, prompts, rollouts, verifiers

    def evaluate(self) -> Evaluation:
        """pass@k of the weights that the rollout workers hold, for every k up to eval.samples, by level.

        The seed does not depend on the step: evaluations of one run differ by their weights alone.
        """
        samples = self.config.eval.samples
        requests = [RolloutRequest(prompt, samples, 0) for prompt in self.prompts]
        seed = (self.config.seed, _EVALUATION)
        groups = self.verifiers.judge(self.rollouts.generate(requests, evaluation_sampling(self.config), seed))
        return summarise(groups, samples)


def summarise(groups: list[Group], samples: int) -> Evaluation:
    """pass@k by level of graded groups of `samples` completions each."""
    correct: dict[str, list[int]] = defaultdict(list)
    for group in groups:
        count = sum(verdict.outcome == "correct" for verdict in group.verdicts)
        level = group.rollout.prompt.problem.level
        for key in ("?" if level is None else str(level), "all"):
            correct[key].append(count)
    found = {
        level: {k: sum(pass_at_k(samples, c, k) for c in counts) / len(counts) for k in range(1, samples + 1)}
        for level, counts in sorted(correct.items())
    }
    return Evaluation(samples, groups, found, {level: len(counts) for level, counts in sorted(correct.items())})
