"""Measures the two ExPO properties of a step's samples under the current policy."""

import itertools

from expo_ray.algorithms.base import Algorithm, Properties
from expo_ray.algorithms.properties import GroupProperties, plan_properties, property_metrics, read_properties
from expo_ray.config.schema import Config
from expo_ray.driver.record import StepRecord
from expo_ray.learner.group import LearnerGroup
from expo_ray.messages import Group
from expo_ray.prompts.builder import PromptBuilder


class Measurer:
    """Args:
    config: the run's configuration.
    algorithm: may need the properties to choose among explanations.
    learners: who scores.
    builder: knows where a completion's answer statement begins.
    """

    def __init__(self, config: Config, algorithm: Algorithm, learners: LearnerGroup, builder: PromptBuilder) -> None:
        self.config, self.algorithm, self.learners, self.builder = config, algorithm, learners, builder

    def properties(self, groups: list[Group], step: int, record: StepRecord) -> Properties | None:
        """The explanations' properties, group by group; None at steps where nothing asks for them.

        Measured where the algorithm chooses by them, and every `algo.properties_every` steps for the record.
        """
        every = self.config.algo.properties_every
        due = every > 0 and step % every == 0
        if not groups or not (due or self.algorithm.needs_properties(step)):
            return None
        with record.phase("properties"):
            found = self._measure(groups)
        record.properties = found
        record.count(property_metrics(found))
        return [of_group.explanations for of_group in found]

    def for_choice(self, groups: list[Group], step: int, record: StepRecord) -> Properties | None:
        """The explanations' properties where the algorithm chooses among explanations sampled now; else None."""
        if not groups or not self.algorithm.needs_properties(step):
            return None
        with record.phase("properties"):
            return [of_group.explanations for of_group in self._measure(groups)]

    def _measure(self, groups: list[Group]) -> list[GroupProperties]:
        plans = [plan_properties(group, self.builder.lead_tokens, self.builder.chain_of) for group in groups]
        scored = iter(self.learners.score([sequence for plan in plans for sequence in plan.sequences]))
        return [read_properties(plan, list(itertools.islice(scored, len(plan.sequences)))) for plan in plans]
