"""The two properties: what is scored, and the numbers, with a character tokenizer and a made-up policy."""

import math

import numpy as np
import pytest

from expo_ray.algorithms.properties import plan_properties, property_metrics, read_properties
from expo_ray.messages import Completion, Group, Rollout, Verdict
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
