"""The leak detector on sentences written for it, and on solutions by people who were given no answer."""

import json
from pathlib import Path

import pytest

from expo_ray.leaks import OVERLAP, PIECE, mentions_given_answer

DATA = Path(__file__).resolve().parents[1] / "data"


def labelled(name: str) -> list[tuple[str, bool]]:
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [(record["text"], record["leak"]) for record in map(json.loads, lines)]


@pytest.mark.parametrize(
    "name", ["leaks.jsonl", "leaks_heldout.jsonl", "leaks_other_author.jsonl", "leaks_blind.jsonl"]
)
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
        ("This matches the expected result.", "matches the expected result"),
        ("We were told that the answer is 3.", "told that the answer"),
        ("We were told that the result is 12.", "told that the result is 12"),
        ("But the result is 30, so the answer $\\frac{3}{4}$ can be derived.", "the answer $\\frac{3}{4}$ can"),
    ],
)
def test_phrases_that_were_missed(text, phrase):
    assert mentions_given_answer(text) == phrase


@pytest.mark.parametrize(
    "marker", ["given", "provided", "stated", "expected", "official", "reference", "correct", "known"]
)
@pytest.mark.parametrize(
    "frame",
    [
        "This matches the {} answer.",
        "Working backwards from the {} answer, x is 4.",
        "It agrees with the {} answer of 24.",
    ],
)
def test_every_marker_of_foreknowledge_works_in_every_frame(marker, frame):
    assert mentions_given_answer(frame.format(marker))


@pytest.mark.parametrize("value", ["24", "$\\frac{3}{4}$", r"\(x^2\)", "$1,250", "(B)", "-3.5", r"\boxed{7}", "twelve"])
@pytest.mark.parametrize(
    ("frame", "leaks"),
    [
        ("Since we know the answer is {}, the price must be 4.", True),
        ("Let's see why the answer is {}.", True),
        ("The prompt gives {} as the answer.", True),
        ("But the correct answer is {}, so we made a mistake.", True),
        ("So the correct answer is {}.", False),
        ("Therefore, we now know that the answer is {}.", False),
        ("She gave the correct answer, which is {} points.", False),
    ],
)
def test_a_rule_that_asks_for_a_value_takes_every_way_to_write_one(frame, leaks, value):
    assert (mentions_given_answer(frame.replace("{}", value)) is not None) == leaks


@pytest.mark.parametrize(("name", "key"), [("math_train.jsonl", "solution"), ("gsm8k_train.jsonl", "answer")])
def test_solutions_by_experts_are_innocent(shared, name, key):
    """Nobody gave these writers an answer. Every tenth of them; docs/algorithms/leaks.md has the figure for all."""
    solutions = [json.loads(line)[key] for line in (shared / "data" / name).open(encoding="utf-8")][::10]
    flagged = [phrase for phrase in map(mentions_given_answer, solutions) if phrase]
    assert len(flagged) <= 0.002 * len(solutions), flagged


def test_phrase_is_found_across_lines_case_and_quotes():
    assert mentions_given_answer("First.\nSINCE the **given\n answer** is 5") == "given answer"
    assert mentions_given_answer("We\u2019re told the answer is 4") == "told the answer"
    assert mentions_given_answer("x = 5") is None
    assert mentions_given_answer("") is None


@pytest.mark.parametrize(
    "piece", ["we know ", "the answer ", "as given ", "the correct ", "true final ", "$", "\\(", "(", " ", "1"]
)
def test_hostile_text_is_searched_to_the_end(piece):
    """A rule that takes quadratic time would not finish these; they take about a second of CPU time each."""
    assert mentions_given_answer((piece * PIECE)[:PIECE]) is None


@pytest.mark.parametrize("before", [PIECE - 10, PIECE - OVERLAP - 10, 3 * PIECE])
def test_a_long_text_is_searched_to_its_end_and_across_seams(before):
    assert mentions_given_answer(f"{'x ' * (before // 2)}since the given answer is 5") == "given answer"
    assert mentions_given_answer(f"{'x ' * (before // 2)}since the sum is 5") is None


def test_a_row_of_adjectives_is_followed_for_four_words():
    """Without a bound, a text of nothing but "final final final" takes half a minute: each word begins a row."""
    assert mentions_given_answer("the given final correct true exact answer") == "given final correct true exact answer"
    assert mentions_given_answer("the given final correct true exact right answer") is None
