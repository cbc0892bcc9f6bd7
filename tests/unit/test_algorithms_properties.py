"""The two properties: what is scored, and the numbers, with a character tokenizer and a made-up policy."""

import contextlib
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from algorithm_cases import config_with

from expo_ray.algorithms.properties import (
    TRAINED_TEXTS,
    made_likelier,
    plan_properties,
    plan_trained,
    property_metrics,
    read_properties,
    wrong_answers,
)
from expo_ray.driver.groups import Measurer
from expo_ray.driver.record import StepRecord
from expo_ray.messages import Completion, Group, Likeliest, Rollout, TrainingBatch, TrainingSample, Verdict
from expo_ray.prompts import PromptBuilder
from expo_ray.world.running_totals import problems
from expo_ray.world.tokenizer import EOS_ID, build_tokenizer

TOKENIZER = build_tokenizer()
BUILDER = PromptBuilder(TOKENIZER, "auto", "toy")


def encoded(text: str) -> np.ndarray:
    return np.array([*TOKENIZER(text)["input_ids"], EOS_ID], dtype=np.int32)


def sampled(text: str) -> Completion:
    ids = encoded(text)
    return Completion(ids, np.zeros(len(ids), np.float32), text, "stop", 0)


def toy_group() -> Group:
    problem = next(p for p in problems("train", [2], 40, 0))
    told, free = (
        [sampled("3+4=7;A:75."), sampled("no mark")],
        [sampled("1=1;A:99."), sampled("2=2;A:88."), sampled("9")],
    )
    return Group(Rollout(*BUILDER([problem]), free, told), [Verdict("wrong")] * 3, [Verdict("correct")] * 2)


def text_of(ids: np.ndarray) -> str:
    return TOKENIZER.decode(ids.tolist())


def test_plan_puts_the_gold_answer_behind_each_chain():
    group = toy_group()
    problem = group.rollout.prompt.problem
    plan = plan_properties(group, BUILDER.lead_tokens, BUILDER.chain_of, free_samples=2)
    question = f"Q:{problem.question}?E:"
    answer = f"{problem.answers[0]}."
    gold_chain, _, _ = problem.solution.rpartition("A:")
    shown = [(text_of(context), text_of(scored)) for context, scored in plan.sequences]
    assert shown[0] == (question + "A:", answer)
    assert shown[1] == (question, "3+4=7;A:75.<eos>")
    assert shown[2] == (question + "3+4=7;A:", answer)
    assert shown[5] == (question, problem.solution + "<eos>")
    assert shown[6] == (question + gold_chain + "A:", answer)
    assert shown[8] == (question + "1=1;A:", answer)
    assert shown[10] == (question + "2=2;A:", answer)
    assert len(shown) == 11


def test_numbers_come_from_the_token_logprobs():
    plan = plan_properties(toy_group(), BUILDER.lead_tokens, BUILDER.chain_of, free_samples=2)
    random = np.random.default_rng(0)
    scored = [random.normal(-1, 0.3, len(ids)).astype(np.float32) for _, ids in plan.sequences]
    found = read_properties(plan, scored)
    alone = float(scored[0].sum())
    free = (float(scored[8].sum()) + float(scored[10].sum())) / 2
    first = found.explanations[0]
    assert first.mean_logprob == pytest.approx(float(scored[1].mean()), abs=1e-6)
    assert first.answer_logprob == pytest.approx(float(scored[2].sum()), abs=1e-6)
    assert first.answer_rise == pytest.approx(float(scored[2].sum()) - alone, abs=1e-5)
    assert first.rise_over_free == pytest.approx(float(scored[2].sum()) - free, abs=1e-5)
    assert found.gold.answer_rise == pytest.approx(float(scored[6].sum()) - alone, abs=1e-5)
    assert len(found.free) == 2 and len(found.explanations) == 2


def test_without_free_chains_the_rise_over_them_is_unknown():
    plan = plan_properties(toy_group(), BUILDER.lead_tokens, BUILDER.chain_of, free_samples=0)
    found = read_properties(plan, [np.zeros(len(ids), np.float32) for _, ids in plan.sequences])
    assert math.isnan(found.explanations[0].rise_over_free)
    metrics = property_metrics([found])
    assert metrics["properties/explanation/answer_rise/mean"] == 0
    assert "properties/explanation/rise_over_free/mean" not in metrics


def test_wrong_number_of_scores_is_refused():
    plan = plan_properties(toy_group(), BUILDER.lead_tokens, BUILDER.chain_of)
    with pytest.raises(ValueError, match="were scored"):
        read_properties(plan, [np.zeros(1, np.float32)])


def test_distributions_are_percentiles_over_groups():
    plan = plan_properties(toy_group(), BUILDER.lead_tokens, BUILDER.chain_of)
    shifted = [
        read_properties(plan, [np.full(len(ids), -level, np.float32) for _, ids in plan.sequences])
        for level in (1.0, 2.0, 3.0)
    ]
    metrics = property_metrics(shifted)
    assert metrics["properties/gold/mean_logprob/p50"] == pytest.approx(-2.0)
    assert metrics["properties/gold/mean_logprob/p10"] == pytest.approx(np.percentile([-1, -2, -3], 10))


def sample_of(term: str, **fields) -> TrainingSample:
    return TrainingSample(encoded("1"), encoded("2"), term, 1.0, **fields)


def test_what_the_update_makes_likelier():
    teacher = Likeliest(np.zeros((2, 1), np.int32), np.zeros((2, 1), np.float32))
    up, down = np.array([-1.0, 0.5], np.float32), np.array([-1.0, 0.0], np.float32)
    raised = [
        sample_of("policy", advantage=0.1),
        sample_of("policy", advantage=-1.0, token_advantages=up),
        sample_of("policy", teacher=teacher),
        sample_of("expert", advantage=0.1),
        *map(sample_of, ("sft", "distill", "chosen")),
    ]
    others = [
        sample_of("policy"),
        sample_of("expert"),
        replace(sample_of("sft"), weight=0.0),
        sample_of("policy", advantage=1.0, token_advantages=down),
        sample_of("rejected"),
        sample_of("conditioned"),
        replace(sample_of("sft"), completion_ids=encoded("")[:0]),
    ]
    assert made_likelier(others + raised) == raised
    many = [replace(sample_of("sft"), weight=float(i + 1)) for i in range(3 * TRAINED_TEXTS - 1)]
    assert [sample.weight for sample in made_likelier(many)] == list(range(1, 3 * TRAINED_TEXTS, 3))


class Learners:
    """Scores a token by its id, its place, the context and the policy; records what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def score(self, sequences, temperature=1.0, reference=False):
        assert temperature == 1.0
        self.asked.append((len(sequences), reference))
        return [self.logprobs(context, ids, reference) for context, ids in sequences]

    def logprobs(self, context, ids, reference=False) -> np.ndarray:
        places = len(context) + int(np.sum(context)) + np.arange(len(ids))
        return (-0.01 * np.asarray(ids) - 0.001 * places - 2.0 * reference).astype(np.float32)


def measurer(**algo) -> Measurer:
    return Measurer(config_with(properties_every=2, **algo), SimpleNamespace(), Learners(), BUILDER)


@pytest.mark.parametrize("base", [False, True])
def test_trained_text_is_measured_after_the_prompt_that_it_is_trained_after(base):
    group, mine, record = toy_group(), measurer(measure_base=base), StepRecord(4)
    prompt, guided = group.rollout.prompt, encoded("Q:9?E:")[:-1]
    guided_group = replace(group, rollout=replace(group.rollout, prompt=replace(prompt, free_ids=guided)))
    texts = ["1=1;A:99.", "2=2;A:88.", "no mark"]
    contexts = [prompt.free_ids, guided, encoded("7")]
    samples = [TrainingSample(c, encoded(t), "sft", 1.0) for c, t in zip(contexts, texts, strict=True)]
    mine.trained([replace(group, guided=guided_group)], TrainingBatch(4, samples), record)
    assert mine.learners.asked == [(3 + 2 * 2, False), (3, True)][: 1 + base]
    of = mine.learners.logprobs
    expected = [of(c, encoded(t)).mean() for c, t in zip(contexts, texts, strict=True)]
    lead, answer = prompt.answer_span[:2], prompt.answer_span[2:]
    assert BUILDER.lead_tokens == 2
    rises = [
        of(np.concatenate([c, encoded(chain)[:-1], lead]), answer).sum() - of(np.concatenate([c, lead]), answer).sum()
        for c, chain in ((contexts[0], "1=1;"), (contexts[1], "2=2;"))
    ]
    found = record.metrics
    assert found["trained/mean_logprob"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["trained/answer_rise"] == pytest.approx(np.mean(rises), abs=1e-5)
    assert (found["trained/texts"], found["trained/leaked"]) == (3, 0)
    assert found.get("trained/base_logprob") == (pytest.approx(np.mean(expected) - 2, abs=1e-6) if base else None)
    assert record.seconds["properties"] > 0


def test_the_answer_alone_follows_what_a_chain_of_nothing_needs():
    """Where the template begins a thought, that is its end."""
    group = toy_group()
    prompt, closing = group.rollout.prompt, encoded(";")[:1]
    plan = plan_trained(
        [TrainingSample(prompt.free_ids, encoded("1=1;"), "sft", 1.0)],
        [group],
        BUILDER.lead_tokens,
        lambda ids: np.concatenate([ids[:-1], closing]),
    )
    contexts = [text_of(context) for context, _ in plan.answers]
    assert contexts == [text_of(prompt.free_ids) + chain + "A:" for chain in (";", "1=1;;")]


def test_trained_text_that_mentions_a_given_answer_is_counted():
    mine, record = measurer(), StepRecord(0)
    leak = "since the given answer is 5, x = 5"
    mine.builder = SimpleNamespace(decode=lambda ids: leak if len(ids) > 2 else "x is 5", lead_tokens=2, chain_of=None)
    samples = [TrainingSample(encoded("1"), encoded("2" * n), "sft", 1.0) for n in (1, 1, 1, 3)]
    mine.trained([], TrainingBatch(0, samples), record)
    assert record.metrics["trained/leaked"] == 0.25 and "trained/answer_rise" not in record.metrics


def test_nothing_is_measured_between_the_steps_or_of_nothing():
    mine, record = measurer(contrast_prompts=4), StepRecord(0)
    mine.trained([toy_group()], TrainingBatch(1, [sample_of("sft")]), record)
    mine.trained([toy_group()], TrainingBatch(2, [sample_of("rejected")]), record)
    mine.contrast([toy_group()], 1, record, lambda requests: 1 / 0)
    mine.contrast([], 2, record, lambda requests: 1 / 0)
    measurer().contrast([toy_group()], 2, record, lambda requests: 1 / 0)
    assert not record.metrics and not mine.learners.asked


def test_wrong_answers_are_the_groups_own_or_another_problems_of_the_level():
    group = toy_group()
    problem = group.rollout.prompt.problem
    silent = replace(group, verdicts=[Verdict("no_answer"), Verdict("timeout", "1"), Verdict("correct", "2")])
    own = replace(group, verdicts=[Verdict("correct", "2"), Verdict("wrong", "31")])
    other = replace(problem, answers=("64",), uid="other")
    easier = replace(problem, answers=("9",), level=1)
    at = lambda of, what: replace(of, rollout=replace(of.rollout, prompt=replace(of.rollout.prompt, problem=what)))  # noqa: E731
    groups = [silent, own, at(silent, easier), at(silent, other)]
    found = [(groups.index(of), answer) for of, answer in wrong_answers(groups, 9)]
    assert found == [(0, "64"), (1, "31"), (3, problem.answers[0])]
    assert wrong_answers(groups, 1) == [(silent, "64")]


@pytest.mark.parametrize(("task", "asked"), [("reasoning_gym", 0), ("python_tests", 0), ("package.own:Task", 1)])
def test_no_contrast_where_the_verifier_judges_by_more_than_the_gold_answer(task, asked):
    group = replace(toy_group(), verdicts=[Verdict("wrong", "31")])
    prompt = group.rollout.prompt
    own = replace(prompt, problem=replace(prompt.problem, task=task))
    mine, record, requests = measurer(contrast_prompts=3), StepRecord(2), []
    told = lambda more: requests.extend(more) or []  # noqa: E731
    with contextlib.suppress(ValueError):  # of the explanation that was not sampled
        mine.contrast([replace(group, rollout=replace(group.rollout, prompt=own))], 2, record, told)
    assert len(requests) == asked and record.metrics.get("contrast/left_out", 0) == 1 - asked


def test_the_contrast_asks_for_explanations_of_a_wrong_answer_and_says_whether_they_follow():
    wrong = [Verdict("wrong", "31")]
    group = replace(toy_group(), verdicts=wrong)
    prompt, problem = group.rollout.prompt, group.rollout.prompt.problem
    mine, record = measurer(contrast_prompts=3), StepRecord(2)
    texts, outcomes = ["3+4=7;A:31.", "3+4=7;A:75.", ""], ["correct", "wrong", "no_answer"]

    def sample(requests):
        assert [(r.samples, r.explanations) for r in requests] == [(0, 1)] * 3
        made = []
        for request, text, outcome in zip(requests, texts, outcomes, strict=True):
            assert text_of(request.prompt.conditioned_ids) == f"H:31?Q:{problem.question}?E:"
            assert request.prompt.problem.answers == ("31",) and request.prompt.free_ids is prompt.free_ids
            ids = encoded(text) if text else encoded("")[:0]
            told = Completion(ids, np.zeros(len(ids), np.float32), text, "stop", 2)
            made.append(Group(Rollout(request.prompt, [], [told]), [], [Verdict(outcome)]))
        return made

    mine.contrast([group] * 4, 2, record, sample)
    right, told_wrong = prompt.conditioned_ids, BUILDER.told([replace(problem, answers=("31",))])[0]
    of = mine.learners.logprobs
    gaps = [of(told_wrong, encoded(t)).mean() - of(right, encoded(t)).mean() for t in texts[:2]]
    assert record.metrics["contrast/samples"] == 2 and record.metrics["contrast/follows"] == 0.5
    assert record.metrics["contrast/logprob_gap"] == pytest.approx(np.mean(gaps), abs=1e-6)
    assert abs(np.mean(gaps)) > 1e-3
