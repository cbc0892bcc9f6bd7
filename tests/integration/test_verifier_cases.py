"""The labelled cases of the shared folder, and the comparison against itself at length."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from expo_ray.config.schema import VerifierConfig
from expo_ray.verifier.actor import VerifierActor
from tests.unit.test_verifier_notations import check

CASES = Path(os.environ.get("EXPO_SHARED", Path(__file__).parents[3] / "shared")) / "verifier" / "cases.jsonl"
LEAST_AGREEMENT = 0.97


def test_given_cases() -> None:
    if not CASES.exists():
        pytest.skip(f"{CASES} is not there; set EXPO_SHARED")
    cases = [json.loads(line) for line in CASES.open(encoding="utf-8")]
    cases = [case for case in cases if not case.get("contested")]
    assert len(cases) > 2000
    refused: Counter[str] = Counter()
    accepted = []
    for task in sorted({case["task"] for case in cases}):
        of_task = [case for case in cases if case["task"] == task]
        actor = VerifierActor(VerifierConfig(name=task, processes=2))
        try:
            verdicts = actor.judge([(case["response"], (case["answer"],), {}) for case in of_task])
        finally:
            actor.close()
        for case, verdict in zip(of_task, verdicts, strict=True):
            if verdict.outcome == "correct" and not case["equal"]:
                accepted.append((case["kind"], case["response"][-200:], case["answer"]))
            refused[case["kind"]] += verdict.outcome != "correct" and case["equal"]
    assert accepted == []
    assert refused.total() <= (1 - LEAST_AGREEMENT) * len(cases), {kind: n for kind, n in refused.items() if n}


@pytest.mark.slow
def test_many_random_expressions_in_two_notations() -> None:
    check(5000, seed=2)
