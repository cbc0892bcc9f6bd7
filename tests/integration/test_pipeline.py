"""The whole pipeline as a user runs it: real Ray, vLLM and DeepSpeed on the toy task, by the command line."""

import json
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.chaos.compare import lines, untimed
from tests.integration.small_run import REPOSITORY, SMALL, STEPS, finish, launch

pytestmark = pytest.mark.timeout(1800)


def unused() -> set[str]:
    """The files of shared memory that no process has mapped or open; other tests may use theirs meanwhile."""
    names = {str(path) for path in Path("/dev/shm").rglob("*")}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            names -= {found.path for found in (*process.memory_maps(), *process.open_files())}
    return names


def test_last_line_is_the_folder_and_the_terminal_stays_quiet(small_run):
    assert small_run.with_suffix(".stdout").read_text().splitlines()[-1] == str(small_run)
    said = small_run.with_suffix(".stderr").read_text()
    assert len(said.splitlines()) <= STEPS, said


def test_run_folder_is_complete(small_run):
    folder = small_run
    for name in ("config.yaml", "plan.txt", "metrics.jsonl", "samples.jsonl", "summary.json"):
        assert (folder / name).stat().st_size > 0, name
    assert {p.name for p in (folder / "logs").glob("*.log")} >= {"rollout-0.log", "learner-0.log", "learner-1.log"}
    assert list((folder / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_000004", "step_000006"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] and summary["steps_done"] == STEPS
    assert "expo_ray.train experiment=demo" in summary["command"]


def test_every_sync_was_proved_and_engine_and_trainer_agree(small_run):
    steps = lines(small_run / "metrics.jsonl")
    assert [line["step"] for line in steps] == list(range(STEPS))
    for line in steps:
        assert line["sync/version"] == line["step"] + 1
        assert line["sync/max_difference"] <= line["sync/tolerance"] <= 1e-3
        assert 0 < line["mismatch/mean_abs"] < 1e-4
    assert lines(small_run / "proofs.jsonl")[0]["worker_versions"] == [0]


@pytest.mark.slow
def test_the_shortest_completions_are_enough_to_start_and_to_sync(tmp_path):
    """An engine's context is then hardly longer than a prompt, and the probes of the proof fit into it.

    The second job's context is longer, so the sweep starts actors for it.
    """
    short = ["rollout.max_completion_tokens=1,2", "trainer.steps=1", "eval.before=false", "eval.max_problems=1"]
    done = finish(launch("expo_ray.train", "-m", *SMALL, *short, f"run_dir={tmp_path}/sweep"))
    assert done.returncode == 0, done.stderr[-3000:]
    for tokens in (1, 2):
        folder = tmp_path / "sweep" / str(tokens - 1)
        (line,) = lines(folder / "metrics.jsonl")
        assert line["sync/version"] == 1 and line["sync/max_difference"] <= line["sync/tolerance"]
        assert line["tokens/generated"] <= tokens * 8 * 5  # prompts, and four samples and an explanation of each
        assert not (folder / "events.jsonl").exists() or "replaced" not in (folder / "events.jsonl").read_text()
        assert "Initializing a V1 LLM engine" in (folder / "logs" / "rollout-0.log").read_text()


def test_samples_show_free_completions_and_explanations_with_verdicts(small_run):
    kinds = {line["kind"] for line in lines(small_run / "samples.jsonl")}
    assert kinds == {"free", "explanation", "gold"}
    for line in lines(small_run / "samples.jsonl"):
        if line["kind"] == "free":
            assert (line["outcome"] == "correct") == (line["extracted"] in line["answers"])


def test_exported_policy_loads_in_transformers_and_is_not_the_base(small_run):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = small_run / "checkpoints" / f"step_{STEPS:06d}" / "policy"
    lm, base = (AutoModelForCausalLM.from_pretrained(p) for p in (policy, REPOSITORY / "expo_ray/world/base"))
    assert AutoTokenizer.from_pretrained(policy)("Q:3+4?")["input_ids"]
    moved = [not torch.equal(a, b) for a, b in zip(lm.parameters(), base.parameters(), strict=True)]
    assert all(moved)
    assert all(np.isfinite(p.detach().numpy()).all() for p in lm.parameters())


def test_exported_policy_in_a_fresh_engine_samples_what_the_run_sampled(small_run, tmp_path):
    """vLLM loads the export, and the same seed gives the same evaluation as the engine that was synced."""
    policy = small_run / "checkpoints" / f"step_{STEPS:06d}" / "policy"
    done = finish(launch("expo_ray.evaluate", *SMALL, f"model.path={policy}", f"run_dir={tmp_path / 'eval'}"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "eval")
    found = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    assert found == json.loads((small_run / "summary.json").read_text())["evaluation"]


@pytest.mark.slow
def test_ctrl_c_ends_after_the_step_and_the_same_command_goes_on_exactly(small_run, tmp_path):
    mine = tmp_path / "stopped"
    shared_memory = unused()
    process = launch("expo_ray.train", *SMALL, f"run_dir={mine}")
    deadline = time.monotonic() + 600
    while not (mine / "metrics.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130, done.stderr[-3000:]
    assert "stopping after this step" in done.stderr
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, [p.cmdline() for p in alive]
    assert unused() <= shared_memory
    stopped_at = json.loads((mine / "summary.json").read_text())["steps_done"]
    assert 1 <= stopped_at < STEPS

    done = finish(launch("expo_ray.train", *SMALL, f"run_dir={mine}"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming after step {stopped_at}" in done.stderr
    for here, there in zip(lines(mine / "metrics.jsonl"), lines(small_run / "metrics.jsonl"), strict=True):
        assert untimed(here) == untimed(there)
