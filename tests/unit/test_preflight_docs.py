"""docs/troubleshooting.md against the code: the sentences of the checks, and the types of failed runs."""

import re
from pathlib import Path

import pytest

from expo_ray.command import end_in_a_sentence
from expo_ray.driver.stopping import LimitExceeded
from expo_ray.learner.group import LearnersLost
from expo_ray.rewards.functions import VerifierFailureRate
from expo_ray.runtime.waits import ActorFailed, WaitExpired
from expo_ray.sync import SyncError, SyncProofFailed, SyncTimeout

REPOSITORY = Path(__file__).resolve().parents[2]


def test_each_row_quotes_a_sentence_of_the_code():
    code = "\n".join(
        file.read_text()
        for folder in ("config", "preflight", "data")
        for file in sorted((REPOSITORY / "expo_ray" / folder).glob("*.py"))
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # texts that are written over several lines
    code = code.replace("{WHOLE}", "model.safetensors").replace("{INDEX}", "model.safetensors.index.json")
    quoted = quoted_in_first_column("the sentence has")
    assert len(quoted) > 25
    assert [text for text in quoted if text not in code] == []


FAILURES = {
    "WaitExpired": WaitExpired("late", []),
    "ActorFailed": ActorFailed("died", "rollout-0"),
    "LearnersLost": LearnersLost("gone", ["learner-0"]),
    "SyncTimeout": SyncTimeout("late", ("rollout-0",)),
    "SyncError": SyncError("broken", ("rollout-0",)),
    "SyncProofFailed": SyncProofFailed("differs"),
    "LimitExceeded": LimitExceeded("too large"),
    "VerifierFailureRate": VerifierFailureRate("too many"),
}


def test_the_types_of_failed_runs_are_listed():
    # VerifierStartError is raised in the verifier's own process and reaches the driver as ActorFailed.
    assert set(quoted_in_first_column("type")) == {*FAILURES, "VerifierStartError"}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_run_ends_in_one_line_and_exit_code_1(name, capsys):
    def body() -> int:
        raise FAILURES[name]

    assert end_in_a_sentence(body) == 1
    assert capsys.readouterr().err == f"error: {name}: {FAILURES[name]}\n"


def quoted_in_first_column(heading: str) -> list[str]:
    """The code spans of the first column of the page's table with this heading."""
    page = (REPOSITORY / "docs/troubleshooting.md").read_text()
    table = page.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [text for row in table.splitlines()[2:] for text in re.findall(r"`([^`]+)`", row.split("|")[1])]
