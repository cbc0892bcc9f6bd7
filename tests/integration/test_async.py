"""Runs that sample ahead of the update: the same problems in the same order, samples no older than allowed."""

import json
import os
import signal

import pytest

from tests.chaos.compare import lines
from tests.integration.small_run import STEPS, start, status, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
APART = "learner.ranks=1"  # engine and learner run at the same time, on a core each


def finished(folder, process, code: int = 0) -> list[dict]:
    assert process.wait(900) == code, folder.with_suffix(".stderr").read_text()[-3000:]
    return lines(folder / "metrics.jsonl")


def consumed(folder) -> list[tuple]:
    return [
        (line["step"], line["uids"], line["completions"], line["explanations"])
        for line in lines(folder / "batches.jsonl")
    ]


@pytest.fixture
def in_turn(small_run):
    """The undisturbed run: it samples each step after the update before it."""
    assert [line["staleness/max"] for line in lines(small_run / "metrics.jsonl")] == [0] * STEPS
    return small_run


def test_one_step_ahead_trains_on_the_same_problems_with_weights_one_update_old(in_turn, tmp_path):
    folder = tmp_path / "ahead"
    metrics = finished(folder, start(folder, APART, "trainer.async_steps=1"))
    assert consumed(folder) == consumed(in_turn)
    assert [line["staleness/max"] for line in metrics] == [0] + [1] * (STEPS - 1)
    assert all(line["sync/max_difference"] <= line["sync/tolerance"] for line in metrics)
    assert all({"time/wait", "time/beside_generate"} <= line.keys() for line in metrics)
    assert json.loads((folder / "summary.json").read_text())["evaluation"]["pass_at_k"]


def test_weights_arrive_in_mid_sampling_and_a_kill_loses_nothing(in_turn, tmp_path):
    """Killed while it samples two steps ahead and started again: each problem once, and syncs during the sampling."""
    folder = tmp_path / "ahead"
    # Many short engine steps: the sampling of a step takes longer than its update.
    ahead = (APART, "trainer.async_steps=2", "rollout.max_sequences=4")
    first = start(folder, *ahead)
    until(lambda: status(folder)["step"] >= 3 and status(folder)["phase"] in ("update", "wait"), first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(60)
    assert 2 <= len(consumed(folder)) < STEPS
    metrics = finished(folder, start(folder, *ahead))
    assert consumed(folder) == consumed(in_turn)
    assert 1 <= max(line["staleness/max"] for line in metrics) <= 2
    trace = json.loads((folder / "trace.json").read_text())["traceEvents"]
    worker = next(e["pid"] for e in trace if e["name"] == "process_name" and e["args"]["name"] == "rollout-0")

    def of(name: str) -> list[tuple[int, int]]:
        return [(e["ts"], e["ts"] + e["dur"]) for e in trace if e["pid"] == worker and e["name"] == name]

    within = [
        sync for sync in of("receive weights") for sample in of("sample") if sample[0] < sync[0] < sync[1] < sample[1]
    ]
    assert within, "no sync fell into the sampling: this test saw nothing"


def test_more_cores_than_there_are_is_told(tmp_path):
    process = start(tmp_path / "wide", "trainer.async_steps=1", f"learner.ranks={2 * (os.cpu_count() or 1)}")
    assert process.wait(120) == 2
    told = (tmp_path / "wide.stderr").read_text()
    assert "cores" in told and "Traceback" not in told
