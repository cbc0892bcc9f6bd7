"""Requests are balanced by expected tokens, long ones first; the expectation follows from batches.jsonl."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from expo_ray.driver.record import batch_line
from expo_ray.messages import Completion, Group, Problem, Prompt, Rollout, RolloutRequest, Verdict
from expo_ray.rollout.requests import LengthBook, share_out


def completion(tokens: int) -> Completion:
    return Completion(np.zeros(tokens, np.int32), np.zeros(tokens, np.float32), "", "stop", 0)


def prompt(uid: str, tokens: int = 3) -> Prompt:
    ids = np.ones(tokens, np.int32)
    return Prompt(Problem(uid, "q", ("1",)), ids, ids)


def group(uid: str, free: list[int], explained: list[int]) -> Group:
    rollout = Rollout(prompt(uid), [completion(n) for n in free], [completion(n) for n in explained])
    return Group(rollout, [Verdict("wrong")] * len(free), [Verdict("correct")] * len(explained))


def test_a_problem_is_expected_to_be_as_long_as_it_was():
    book = LengthBook()
    assert book.expected("a") == 0
    book.learn([group("a", [10, 20], [30]), group("b", [2, 4], [])])
    assert book.expected("a") == 20
    assert book.expected("b") == 3
    assert book.expected("never seen") == pytest.approx((20 + 3) / 2)
    book.learn([group("a", [5, 5], [5])])
    assert book.expected("a") == 5


def test_a_resumed_run_has_the_same_length_book(tmp_path: Path):
    steps = [[group("a", [10, 20], [30]), group("b", [2, 4], [])], [group("c", [7, 7], [9]), group("a", [1, 2], [3])]]
    book = LengthBook()
    for groups in steps:
        book.learn(groups)
    lines = [json.dumps({"step": i} | batch_line(groups)) for i, groups in enumerate(steps)]
    (tmp_path / "batches.jsonl").write_text("\n".join(lines) + "\n")
    again = LengthBook.of_run(tmp_path)
    assert [again.expected(uid) for uid in "abcx"] == [book.expected(uid) for uid in "abcx"]
    assert LengthBook.of_run(tmp_path / "nothing").expected("a") == 0


def test_every_request_is_in_one_share_and_the_longest_come_first():
    draw = np.random.default_rng(0)
    asked = [RolloutRequest(prompt(f"p{i}"), 4, 1, float(draw.integers(1, 400))) for i in range(37)]
    shares = share_out(asked, 4)
    assert sorted(i for share in shares for i in share) == list(range(37))
    for share in shares:
        expected = [asked[i].expected_tokens for i in share]
        assert expected == sorted(expected, reverse=True)


def test_the_fullest_share_is_within_the_known_bound_of_the_optimum():
    draw = np.random.default_rng(1)
    for _ in range(20):
        asked = [RolloutRequest(prompt(f"p{i}", 1), 1, 0, float(draw.integers(1, 50))) for i in range(8)]
        work = [request.expected_tokens + 1 for request in asked]
        fullest = max(sum(work[i] for i in share) for share in share_out(asked, 3))
        best = min(
            max(sum(w for w, place in zip(work, places, strict=True) if place == share) for share in range(3))
            for places in product(range(3), repeat=8)
        )
        assert fullest <= best * (4 / 3 - 1 / 9)


def test_fewer_requests_than_engines_leave_engines_idle():
    assert share_out([RolloutRequest(prompt("a"), 1, 0)], 3) == [[0]]
    assert share_out([], 3) == []
