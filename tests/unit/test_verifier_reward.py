"""Rewards, the bound on failures, and the frames between pool and processes."""

import pytest

from expo_ray.config.schema import VerifierConfig
from expo_ray.messages import Verdict
from expo_ray.rewards.functions import VerifierFailureRate, check_failure_rate, reward
from expo_ray.verifier import wire
from expo_ray.verifier.pool import _checked
from expo_ray.verifier.tasks import Task
from expo_ray.verifier.worker import Grader


def test_rewards() -> None:
    config = VerifierConfig(reward_correct=2.0, reward_wrong=-0.5)
    expected = {"correct": 2.0, "wrong": -0.5, "no_answer": -0.5, "timeout": None, "error": None}
    assert {outcome: reward(Verdict(outcome), config) for outcome in expected} == expected
    config.count_failures_as_wrong = True
    assert reward(Verdict("timeout"), config) == -0.5


def test_partial_credit_is_a_share_of_the_way_to_the_whole_reward() -> None:
    config = VerifierConfig(reward_correct=2.0, reward_wrong=-0.5)
    assert reward(Verdict("wrong", credit=0.0), config) == -0.5
    assert reward(Verdict("wrong", credit=0.2), config) == pytest.approx(0.0)
    assert reward(Verdict("correct"), config) == 2.0


def test_failures_of_a_class_of_ones_own_name_it() -> None:
    with pytest.raises(VerifierFailureRate, match="An exception in mine:Task is an error"):
        check_failure_rate([Verdict("error")], VerifierConfig(name="mine:Task"))


def test_failure_rate_is_bounded() -> None:
    config = VerifierConfig(max_failure_rate=0.2)
    verdicts = [Verdict("correct")] * 8 + [Verdict("timeout"), Verdict("error")]
    assert check_failure_rate(verdicts, config) == 0.2
    assert check_failure_rate([], config) == 0.0
    with pytest.raises(VerifierFailureRate, match="1 timeouts and 2 errors in 11 verdicts"):
        check_failure_rate([*verdicts, Verdict("error")], config)


def test_frames_keep_hostile_text() -> None:
    value = ["\ud800 \x00 \u202e", 1, None]
    buffer = bytearray(wire.pack(value))
    assert wire.unpack(buffer[:-1], 1000) is None
    assert wire.unpack(buffer, 1000) == value
    assert not buffer


def test_frames_have_a_limit() -> None:
    with pytest.raises(wire.BadFrame, match="limit"):
        wire.unpack(bytearray(wire.pack("x" * 2000)), 1000)
    with pytest.raises(wire.BadFrame, match="not JSON"):
        wire.unpack(bytearray(wire.HEADER.pack(3) + b"\x80\x04."), 1000)


@pytest.mark.parametrize(
    "reply",
    [
        None,
        5,
        [],
        ["6b", 0, "correct", "x", "exact", 0.0],
        ["6b", 1, "correct", "x", "exact", 0.0, 0.1],
        ["6b", 0, "great", "x", "exact", 0.0, 0.1],
        ["6b", 0, "correct", 5, "exact", 0.0, 0.1],
        ["6b", 0, "correct", "x", "exact", 0.5, 0.1],
        ["6b", 0, "wrong", "x", "exact", 1.0, 0.1],
        ["6b", 0, "wrong", "x", "exact", -0.1, 0.1],
        ["6b", 0, "wrong", "x", "exact", float("nan"), 0.1],
        ["6b", 0, "wrong", "x", "exact", "0.5", 0.1],
        ["", 0, "correct", "x", "exact", 0.0, 0.1],
        ["6c", 0, "correct", "x", "exact", 0.0, 0.1],
    ],
)
def test_a_lying_process_is_not_believed(reply: object) -> None:
    with pytest.raises(wire.BadFrame):
        _checked(reply, 0, b"k")


def test_an_honest_process_is_believed() -> None:
    assert _checked(["6b", 0, "wrong", "x", "exact", 0.5, 0.1], 0, b"k") == Verdict("wrong", "x", "exact", 0.1, 0.5)


class Shares(Task):
    """Gives the share that the gold answer names."""

    def extract(self, response: str) -> str | None:
        return response

    def grade(self, extracted: str, gold: str, meta: dict) -> tuple[float, str]:
        return float(gold), gold


@pytest.mark.parametrize(
    ("golds", "expected"),
    [
        (["0.25"], ("wrong", "x", "0.25", 0.25)),
        (["0.25", "0.75", "0.5"], ("wrong", "x", "0.75", 0.75)),
        (["0.25", "1", "0.5"], ("correct", "x", "1", 0.0)),
        (["0"], ("wrong", "x", "0", 0.0)),
    ],
)
def test_the_nearest_gold_answer_counts(golds: list[str], expected: tuple[str, str, str, float]) -> None:
    assert Grader(Shares({})).verdict("x", golds, {}) == expected


@pytest.mark.parametrize("gold", ["1.5", "-0.1", "nan"])
def test_what_is_no_share_is_refused(gold: str) -> None:
    with pytest.raises(ValueError, match="no share from 0 to 1"):
        Grader(Shares({})).verdict("x", [gold], {})
