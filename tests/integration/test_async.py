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


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("async") / "in_turn"
    metrics = finished(folder, start(folder, APART))
    assert [line["staleness/max"] for line in metrics] == [0] * STEPS
    return folder


def test_one_step_ahead_trains_on_the_same_problems_with_weights_one_update_old(in_turn, tmp_path):
    folder = tmp_path / "ahead"
    metrics = finished(folder, start(folder, APART, "trainer.async_steps=1"))
    assert consumed(folder) == consumed(in_turn)
    assert [line["staleness/max"] for line in metrics] == [0] + [1] * (STEPS - 1)
    assert all(line["sync/max_difference"] <= line["sync/tolerance"] for line in metrics)
    assert all({"time/wait", "time/beside_generate"} <= line.keys() for line in metrics)
    assert json.loads((folder / "summary.json").read_text())["evaluation"]["pass_at_k"]


def test_weights_arrive_while_completions_are_sampled_and_nothing_is_lost(in_turn, tmp_path):
    folder = tmp_path / "ahead"
    # Many short engine steps: the sampling of a step takes longer than its update.
    metrics = finished(folder, start(folder, APART, "trainer.async_steps=2", "rollout.max_sequences=4"))
    assert consumed(folder) == consumed(in_turn)
    assert 1 <= max(line["staleness/max"] for line in metrics) <= 2
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    worker = next(e["pid"] for e in events if e["name"] == "process_name" and e["args"]["name"] == "rollout-0")

    def of(name: str) -> list[tuple[int, int]]:
        return [(e["ts"], e["ts"] + e["dur"]) for e in events if e["pid"] == worker and e["name"] == name]

    within = [
        sync for sync in of("receive weights") for sample in of("sample") if sample[0] < sync[0] < sync[1] < sample[1]
    ]
    assert within, "no sync fell into the sampling: this test saw nothing"


def test_a_run_killed_while_it_samples_ahead_uses_no_problem_twice(in_turn, tmp_path):
    folder = tmp_path / "ahead"
    first = start(folder, APART, "trainer.async_steps=1")
    until(lambda: status(folder)["step"] >= 4 and status(folder)["phase"] in ("update", "wait"), first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(60)
    assert 2 <= len(consumed(folder)) < STEPS
    finished(folder, start(folder, APART, "trainer.async_steps=1"))
    assert consumed(folder) == consumed(in_turn)


def test_more_cores_than_there_are_is_told(tmp_path):
    process = start(tmp_path / "wide", "trainer.async_steps=1", f"learner.ranks={2 * (os.cpu_count() or 1)}")
    assert process.wait(120) == 2
    told = (tmp_path / "wide.stderr").read_text()
    assert "cores" in told and "Traceback" not in told
