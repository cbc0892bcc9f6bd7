"""Whole responses with a label, and right answers that are spoiled mechanically: nothing spoiled counts (10 s)."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from expo_ray.verifier.tasks import make_task
from expo_ray.verifier.worker import Grader

ROWS = [
    row
    for line in (Path(__file__).parent.parent / "data" / "verifier_responses.jsonl").open(encoding="utf-8")
    if not (row := json.loads(line)).get("contested")
]
GRADERS = {name: Grader(make_task(name, {})) for name in ("math", "gsm8k", "choice")}


def counts(task: str, response: str, gold: str) -> bool:
    outcome, _extracted, method, _credit = GRADERS[task].verdict(response, [gold], {})
    assert not method.startswith("failed"), (response, gold, method)
    return outcome == "correct"


def test_labelled_responses() -> None:
    said = [counts(row["task"], row["response"], row["answer"]) for row in ROWS]
    assert [row for row, right in zip(ROWS, said, strict=True) if right and not row["equal"]] == []
    refused = [row for row, right in zip(ROWS, said, strict=True) if row["equal"] and not right]
    assert len(refused) <= 0.02 * len(ROWS), refused


def replaced(pattern: str, change: Callable[[re.Match[str], random.Random], str]) -> Callable:
    """Changes one random match of a pattern; the text as it is where there is none."""

    def spoil(text: str, draw: random.Random) -> str:
        found = list(re.finditer(pattern, text))
        if not found:
            return text
        match = draw.choice(found)
        return text[: match.start()] + change(match, draw) + text[match.end() :]

    return spoil


def around(*forms: str) -> Callable:
    return lambda text, draw: draw.choice(forms).replace("@", text)


WORDS = "not wrong|or so|maybe|thousand|squared|or more|at least|at most|mod 0|of 2|hundredths|factorial|cubed|tens|?"
TURNED = {"\\le": ">", "\\ge": "<", "<": "\\ge ", ">": "\\le "}
SPOIL = {
    "a sign is dropped": replaced("-", lambda match, draw: ""),
    "a digit is changed": replaced(r"[0-9]", lambda match, draw: str((int(match[0]) + draw.randint(1, 9)) % 10)),
    "digits are swapped": replaced(r"([0-9])(?!\1)([0-9])", lambda match, draw: match[2] + match[1]),
    "a relation is turned": replaced(r"\\le|\\ge|<|>|=", lambda match, draw: TURNED.get(match[0], "\\ne ")),
    "words are added": around(*(rf"@\text{{ {word}}}" for word in WORDS.split("|"))),
    "words stand before": around(r"\text{not }@", r"\text{minus }(@)", r"\text{more than }@", r"\text{either }@"),
    "another answer is joined": around("@ or 19", r"@\text{ or }19", r"@ \lor 19", "@; 19", r"19\text{ or }@"),
    "it is part of more": around(r"\frac{1}{@+3}", "-(@+3)", "f(@)", r"@\cdot 19", "@+19", "@-w", r"19 \implies @"),
    "it is taken back": around(r"@ = \text{none}", r"\text{none} = @", r"@ \text{ is wrong}", r"@\text{ vs }19"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOIL)
def test_a_spoiled_answer_does_not_count(kind: str) -> None:
    draw = random.Random(kind)
    # A label may stand alone before any text, 0 times anything is 0, and a named point may have any name.
    golds = [row["answer"] for row in ROWS if row["task"] == "math" and not re.fullmatch(r"0|.*[_|].*", row["answer"])]
    accepted = []
    for gold in dict.fromkeys(golds):
        spoiled = SPOIL[kind](gold, draw)
        if spoiled != gold and counts("math", f"\\boxed{{{spoiled}}}", gold):
            accepted.append((gold, spoiled))
    assert accepted == []
