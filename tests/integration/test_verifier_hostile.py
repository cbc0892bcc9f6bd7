"""Hostile responses: each is answered within its limit plus one second, the pool lives, and nothing is executed."""

import json
import os
import time
from pathlib import Path

import pytest

from expo_ray.config.schema import VerifierConfig
from expo_ray.verifier.actor import VerifierActor

CASES = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "hostile.jsonl").open()]
TIMEOUT_S = 1.0
MEMORY_MIB = 1024
CANARY = Path("/tmp/expo_ray_pwned")
# These say what the gold says, if in an odd way; everything else must not be `correct`.
RIGHT = {
    "thousands of closed boxed", "nested boxed", "closed too often", "factorial difference", "long equation chain",
    "zero to zero", "tower minus itself", "leading zeros", "huge integer", "arabic digits", "fullwidth digits",
}  # fmt: skip


@pytest.fixture(scope="module")
def actor():
    CANARY.unlink(missing_ok=True)
    made = VerifierActor(VerifierConfig(name="math", processes=1, timeout_s=TIMEOUT_S, memory_mib=MEMORY_MIB))
    made.ping()
    yield made
    made.close()


def response(case: dict) -> str:
    return case["prefix"] + case["unit"] * case["count"] + case["suffix"]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60
    assert len({case["name"] for case in CASES}) == len(CASES)


def test_all_hostile_cases(actor: VerifierActor) -> None:
    slow, accepted = [], []
    for case in CASES:
        start = time.monotonic()
        verdict = actor.judge([(response(case), (case["gold"],), {})])[0]
        seconds = time.monotonic() - start
        if seconds > TIMEOUT_S + 10:  # a busy machine's slack
            slow.append((case["name"], seconds))
        if verdict.outcome == "correct" and case["name"] not in RIGHT:
            accepted.append(case["name"])
        state = actor.ping()
        assert state["alive"] == 1, case["name"]
        with open(f"/proc/{state['pids'][0]}/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident <= MEMORY_MIB << 20, case["name"]
    assert slow == []
    assert accepted == []
    assert not CANARY.exists()


def test_a_good_item_after_all_of_them(actor: VerifierActor) -> None:
    assert actor.judge([(r"\boxed{\frac{2}{4}}", ("0.5",), {})])[0].outcome == "correct"
