"""Explanations and pairs sampled once or every k steps: for which problems, how often, and after a resume."""

import json
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from algorithm_cases import completion, config_with, group

from expo_ray.algorithms import make_algorithm
from expo_ray.data.stream import PromptStream
from expo_ray.driver.groups import Collector
from expo_ray.driver.record import StepRecord
from expo_ray.messages import Group, Rollout, TrainingBatch, Verdict
from expo_ray.rollout.requests import LengthBook


class FakeActors:
    """Samples wrong completions and correct explanations, and counts them by problem."""

    def __init__(self, leaks: bool = False) -> None:
        self.explanation = "since the answer is given as 5" if leaks else "it follows that x is 5"
        self.completions: Counter[str] = Counter()
        self.explanations: Counter[str] = Counter()
        self.rollouts = self.verifiers = self

    def generate(self, requests, sampling, seed):
        for request in requests:
            self.completions[request.prompt.problem.uid] += request.samples
            self.explanations[request.prompt.problem.uid] += request.explanations
        return [
            Rollout(r.prompt, [completion(4)] * r.samples, [completion(3, self.explanation)] * r.explanations)
            for r in requests
        ]

    def verify(self, rollouts):
        return [
            Group(r, [Verdict("wrong") for _ in r.completions], [Verdict("correct") for _ in r.explanations])
            for r in rollouts
        ]


def config_for(steps: int, **algo):
    config = config_with(**algo)
    config.trainer.steps, config.rollout.samples_per_prompt, config.rollout.explanations_per_prompt = steps, 2, 1
    return config


class Run:
    """Steps of a run over six problems, two a step: an epoch is three steps."""

    def __init__(self, config, state: str | None = None, leaks: bool = False) -> None:
        self.config, self.actors = config, FakeActors(leaks)
        self.algorithm = make_algorithm(config)
        if state is not None:
            self.algorithm.load_state_dict(json.loads(state))
        prompts = [group([], uid=f"p{i}").rollout.prompt for i in range(6)]
        measurer = SimpleNamespace(for_choice=lambda *_: None, contrast=lambda *_: None)
        stream = PromptStream(prompts, 2, seed=3)
        self.collector = Collector(config, self.algorithm, stream, self.actors, measurer, LengthBook())

    def batches(self, first: int, last: int) -> Iterator[TrainingBatch]:
        """Trains the steps from `first` up to `last`."""
        for step in range(first, last):
            yield self.algorithm.training_batch(self.collector.groups(step, StepRecord(step)), step)

    def targets(self, first: int, last: int) -> list[int]:
        """The number of explanations or pairs that each step trained on."""
        terms = ("sft", "chosen")
        return [sum(sample.term in terms for sample in batch.samples) for batch in self.batches(first, last)]

    def state(self) -> str:
        return json.dumps(self.algorithm.state_dict())


ONCE = {"exp_grpo": {"explanation_refresh_steps": 0}, "exp_dpo": {"dpo_refresh": "offline"}}
EVERY = {
    "exp_grpo": {"explanation_refresh_steps": 4},
    "exp_dpo": {"dpo_refresh": "iterative", "dpo_refresh_steps": 4},
}


@pytest.fixture(autouse=True)
def no_pairs_file(monkeypatch):
    monkeypatch.setattr("expo_ray.algorithms.exp_dpo.ExpDpo._score_and_store", lambda self: 0)


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("scope", ["every", "all_wrong"])
def test_once_is_once_for_each_problem_and_not_for_each_epoch(name, scope):
    run = Run(config_for(12, name=name, explanation_scope=scope, **ONCE[name]))
    assert run.targets(0, 12) == [2] * 12
    assert run.actors.explanations == {f"p{i}": 1 for i in range(6)}
    if name == "exp_dpo":
        assert run.actors.completions == {f"p{i}": 2 for i in range(6)}


@pytest.mark.parametrize("name", EVERY)
def test_a_period_longer_than_an_epoch_samples_each_problem_once(name):
    run = Run(config_for(8, name=name, **EVERY[name]))
    assert run.targets(0, 8) == [2] * 8
    assert run.actors.explanations == {f"p{i}": 2 for i in range(6)}


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("keys", [ONCE, EVERY], ids=["once", "every"])
@pytest.mark.parametrize(("planned", "stopped"), [(2, 2), (2, 1), (3, 3), (5, 4)])
def test_a_run_that_resumes_with_more_steps_trains_on_targets_to_its_end(name, keys, planned, stopped):
    first = Run(config_for(planned, name=name, **keys[name]))
    assert first.targets(0, stopped) == [2] * stopped
    resumed = Run(config_for(8, name=name, **keys[name]), first.state())
    assert resumed.targets(stopped, 8) == [2] * (8 - stopped)
    if keys is ONCE:
        both = first.actors.explanations + resumed.actors.explanations
        assert both == {f"p{i}": 1 for i in range(6)}


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("keys", [ONCE, EVERY], ids=["once", "every"])
def test_a_resume_with_the_same_steps_samples_what_the_whole_run_samples(name, keys):
    whole, first = (Run(config_for(8, name=name, **keys[name])) for _ in range(2))
    whole.targets(0, 8)
    first.targets(0, 3)
    resumed = Run(config_for(8, name=name, **keys[name]), first.state())
    assert resumed.targets(3, 8) == [2] * 5
    assert first.actors.explanations + resumed.actors.explanations == whole.actors.explanations
    assert first.actors.completions + resumed.actors.completions == whole.actors.completions


@pytest.mark.parametrize("refresh", [1, 4, 0])
@pytest.mark.parametrize("beta", [0.04, 0.0])
@pytest.mark.parametrize("leaks", [False, True], ids=["kept", "left out"])
def test_the_conditioned_kl_acts_on_stored_explanations_too(refresh, beta, leaks):
    """The refresh period changes the explanations' age only: the same samples at each step, also after a resume."""
    keys = {"explanation_refresh_steps": refresh, "kl_conditioned_coef": 1.0, "beta": beta}
    first = Run(config_for(8, **keys), leaks=leaks)
    batches = list(first.batches(0, 3))
    resumed = Run(config_for(8, **keys), first.state(), leaks)
    batches += resumed.batches(3, 8)
    for batch in batches:
        found = [s for s in batch.samples if s.term == "conditioned"]
        assert [s.prompt_ids.tolist() for s in found] == [[1, 2, 9, 3]] * 2
        assert [(s.completion_ids.tolist(), s.weight) for s in found] == [([100, 101, 102], 1 / (2 * 3))] * 2
        assert sum(s.term == "sft" for s in batch.samples) == (2 if beta and not leaks else 0)


@pytest.mark.parametrize("keys", [ONCE, EVERY], ids=["once", "every"])
@pytest.mark.parametrize("name", [*ONCE, "dpo_gt"])
def test_a_steps_counts_are_of_its_own_prompts(name, keys):
    """What is sampled for later steps is counted apart; both together are what was sampled."""
    run = Run(config_for(8, name=name, **keys.get(name, keys["exp_dpo"])))
    free, explained = name != "exp_grpo", name != "dpo_gt"
    run.config.rollout.explanations_per_prompt = int(explained)
    tokens = explanations = 0
    for step in range(8):
        record = StepRecord(step)
        groups = run.collector.groups(step, record)
        record.count(run.algorithm.training_batch(groups, step).metrics)
        counts = record.metrics
        own = [c for group in groups for c in group.rollout.sampled]
        assert counts["tokens/generated"] == sum(len(c.token_ids) for c in own)
        tokens += counts["tokens/generated"] + counts["ahead/tokens/generated"]
        if free:
            assert counts["pairs/made"] == sum(bool(group.rollout.completions) for group in groups)
            assert (counts["ahead/pairs/made"] > 0) == (step in {0: [0], 4: [0, 4]}[run.algorithm.refresh.period])
        if explained:
            assert counts["explanations/sampled"] == sum(len(group.rollout.explanations) for group in groups) <= 2
            explanations += counts["explanations/sampled"] + counts["ahead/explanations/sampled"]
        else:
            assert counts["gold/prompts_without"] == 0
    assert explanations == run.actors.explanations.total()
    assert tokens == 4 * run.actors.completions.total() + 3 * run.actors.explanations.total()


def test_refill_draws_no_problem_twice_in_a_step():
    """All groups are without signal: each round draws as many problems again, as long as there are any."""
    run = Run(config_for(8, name="grpo", dynamic_sampling="refill", refill_rounds=4))
    record = StepRecord(5)
    drawn = [group.rollout.prompt.problem.uid for group in run.collector.groups(5, record)]
    assert sorted(drawn) == [f"p{i}" for i in range(6)]
    assert (record.metrics["groups/refill_sampled"], record.metrics["groups/refill_missing"]) == (4, 2)
    again = Run(config_for(8, name="grpo", dynamic_sampling="refill", refill_rounds=4), "{}")
    assert [g.rollout.prompt.problem.uid for g in again.collector.groups(5, StepRecord(5))] == drawn


def test_problems_out_of_scope_at_first_are_sampled_for_their_next_epoch():
    """Scope all_wrong: the first step's own problems have no explanation where one was solved."""
    config = config_for(6, name="exp_grpo", explanation_scope="all_wrong", explanation_refresh_steps=0)
    run = Run(config)
    verify = run.actors.verify

    def solved_at_first(rollouts):
        groups = verify(rollouts)
        for made in groups if not run.actors.explanations.total() else []:
            made.verdicts[:] = [Verdict("correct") for _ in made.verdicts]
        return groups

    run.actors.verify = solved_at_first
    assert run.targets(0, 6) == [0, 2, 2, 2, 2, 2]
    assert run.actors.explanations == {f"p{i}": 1 for i in range(6)}
