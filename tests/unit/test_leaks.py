"""The leak detector on sentences written for it, and on solutions by people who were given no answer."""

import json
import time
from pathlib import Path

import pytest

from expo_ray.leaks import mentions_given_answer

DATA = Path(__file__).resolve().parents[1] / "data"


def labelled(name: str) -> list[tuple[str, bool]]:
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [(record["text"], record["leak"]) for record in map(json.loads, lines)]


@pytest.mark.parametrize("name", ["leaks.jsonl", "leaks_heldout.jsonl", "leaks_other_author.jsonl"])
def test_precision_and_recall(name):
    """How the lists came about: docs/algorithms/leaks.md."""
    sentences = labelled(name)
    flagged = [leak for text, leak in sentences if mentions_given_answer(text) is not None]
    leaks = sum(leak for _, leak in sentences)
    precision, recall = sum(flagged) / len(flagged), sum(flagged) / leaks
    print(f"{name}: precision {precision:.3f}, recall {recall:.3f}")
    assert precision >= 0.95 and recall >= 0.9


def test_the_list_is_large_and_half_innocent():
    sentences = labelled("leaks.jsonl")
    assert len({text for text, _ in sentences}) == len(sentences) >= 200
    assert 0.45 <= sum(leak for _, leak in sentences) / len(sentences) <= 0.55


def test_at_most_one_of_maths_test_solutions_is_flagged(shared):
    solutions = [json.loads(line)["solution"] for line in (shared / "data/math_test.jsonl").open(encoding="utf-8")]
    flagged = [phrase for phrase in map(mentions_given_answer, solutions) if phrase]
    assert len(solutions) == 5000 and len(flagged) <= 1, flagged


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("To show that the correct answer is 24", "to show that the correct answer is"),
        ("We verify that the correct answer is indeed 5.", "verify that the correct answer is indeed"),
        ("The problem gives us the answer 7.", "problem gives us the answer"),
        ("This matches the expected result.", "expected result"),
        ("We were told that the answer is 3.", "we were told that the answer"),
        ("We were told that the result is 12.", "we were told that the result is 1"),
    ],
)
def test_phrases_that_were_missed(text, phrase):
    assert mentions_given_answer(text) == phrase


@pytest.mark.parametrize(("name", "key"), [("math_train.jsonl", "solution"), ("gsm8k_train.jsonl", "answer")])
def test_solutions_by_experts_are_innocent(shared, name, key):
    """Nobody gave these writers an answer. Every tenth of them; docs/algorithms/leaks.md has the figure for all."""
    solutions = [json.loads(line)[key] for line in (shared / "data" / name).open(encoding="utf-8")][::10]
    flagged = [phrase for phrase in map(mentions_given_answer, solutions) if phrase]
    assert len(flagged) <= 0.002 * len(solutions), flagged


def test_phrase_is_found_across_lines_case_and_quotes():
    assert mentions_given_answer("First.\nSINCE the **given\n answer** is 5") == "given answer"
    assert mentions_given_answer("We\u2019re told the answer is 4").startswith("we're told the answer")
    assert mentions_given_answer("x = 5") is None
    assert mentions_given_answer("") is None


def test_hostile_text_takes_bounded_time():
    begun = time.monotonic()
    for text in ("we know " * 100_000, "the answer " * 100_000, "as given " * 100_000, " " * 1_000_000):
        mentions_given_answer(text)
    assert time.monotonic() - begun < 10
