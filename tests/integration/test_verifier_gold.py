"""Every gold answer of MATH and GSM8K against itself, through the whole verifier."""

import json
import os
from pathlib import Path

import pytest

from expo_ray.config.schema import VerifierConfig
from expo_ray.verifier.actor import VerifierActor

DATA = Path(os.environ.get("EXPO_SHARED", Path(__file__).parents[3] / "shared")) / "data"
# Two problems of MATH have an empty \boxed{} as their answer: there is nothing to grade.
EMPTY_GOLDS = 2


def rows(*names: str) -> list[dict]:
    missing = [name for name in names if not (DATA / name).exists()]
    if missing:
        pytest.skip(f"{missing} not in {DATA}; set EXPO_SHARED")
    return [json.loads(line) for name in names for line in (DATA / name).open()]


def judge(task: str, items: list) -> list:
    actor = VerifierActor(VerifierConfig(name=task, processes=2))
    try:
        return actor.judge(items)
    finally:
        actor.close()


@pytest.mark.slow
def test_math_gold_against_gold() -> None:
    golds = [row["answer"] for row in rows("math_train.jsonl", "math_test.jsonl")]
    assert len(golds) == 12500
    verdicts = judge("math", [(f"So it is $\\boxed{{{gold}}}$.", (gold,), {}) for gold in golds])
    exceptions = [(g, v.outcome) for g, v in zip(golds, verdicts, strict=True) if v.outcome != "correct"]
    assert exceptions == [("", "no_answer")] * EMPTY_GOLDS


@pytest.mark.slow
def test_math_gold_in_another_spelling() -> None:
    golds = [row["answer"] for row in rows("math_train.jsonl", "math_test.jsonl") if row["answer"]]
    spelled = [gold.replace("\\frac", "\\dfrac").replace("(", "\\left(").replace(")", "\\right)") for gold in golds]
    verdicts = judge("math", [(f"\\boxed{{ {said} }}", (gold,), {}) for said, gold in zip(spelled, golds, strict=True)])
    right = sum(verdict.outcome == "correct" for verdict in verdicts)
    assert right >= 0.995 * len(golds)


@pytest.mark.slow
def test_gsm8k_gold_against_gold() -> None:
    answers = [row["answer"] for row in rows("gsm8k_train.jsonl", "gsm8k_test.jsonl")]
    golds = [answer.rpartition("####")[2].strip() for answer in answers]
    templates = ("{answer}", "#### {gold}", "The answer is {gold}.", "\\boxed{{{gold}}}")
    said = [(t.format(answer=a, gold=g), (g,), {}) for t in templates for a, g in zip(answers, golds, strict=True)]
    verdicts = judge("gsm8k", said)
    wrong = [item for item, verdict in zip(said, verdicts, strict=True) if verdict.outcome != "correct"]
    assert wrong == []
