"""Limits on measured values that stop a run."""

import pytest

from expo_ray.config.schema import Config
from expo_ray.driver.stopping import LimitExceeded, check_failures, check_mismatch
from expo_ray.messages import Group, Problem, Prompt, Rollout, Score, UpdateReport, Verdict
from expo_ray.rewards.functions import VerifierFailureRate


def report(mismatch: float) -> UpdateReport:
    return UpdateReport({"mismatch/mean_abs": mismatch}, trained_tokens=1, seconds=1.0)


def test_mismatch_beyond_its_bound_stops_with_both_numbers_and_the_key():
    config = Config()
    config.trainer.max_mismatch = 0.01
    check_mismatch(report(0.0099), config)
    with pytest.raises(LimitExceeded, match=r"0\.02 nats .*trainer\.max_mismatch=0\.01"):
        check_mismatch(report(0.02), config)


def test_a_nan_mismatch_stops_too():
    with pytest.raises(LimitExceeded):
        check_mismatch(report(float("nan")), Config())


def test_too_many_verifier_failures_stop():
    config = Config()
    prompt = Prompt(Problem("p", "q", ("1",)), None, None)
    verdicts = [Verdict("correct")] * 8 + [Verdict("timeout"), Verdict("error")]
    check_failures([Group(Rollout(prompt, [], []), [*verdicts[:9], Verdict("wrong")], [])], config)
    with pytest.raises(VerifierFailureRate, match="max_failure_rate"):
        check_failures([Group(Rollout(prompt, [], []), verdicts, [])], config)


def test_failures_on_completions_drawn_again_count_too():
    config = Config()
    config.reward.functions = ["verifier", "own"]
    prompt, fine = Prompt(Problem("p", "q", ("1",)), None, None), Score(1.0, "", 1.0)

    def drawn(verdict: Verdict, score: Score) -> Group:
        again = Group(Rollout(prompt, [], []), [verdict] * 3, [], {"own": [score] * 3})
        return Group(Rollout(prompt, [], []), [Verdict("wrong")] * 3, [], {"own": [fine] * 3}, guided=again)

    check_failures([drawn(Verdict("correct"), fine)], config)
    with pytest.raises(VerifierFailureRate, match="3 errors in 6 verdicts"):
        check_failures([drawn(Verdict("error"), fine)], config)
    with pytest.raises(LimitExceeded, match="failed on 3 of 6 completions"):
        check_failures([drawn(Verdict("wrong"), Score(None, "ValueError", 1.0))], config)
