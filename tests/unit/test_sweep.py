"""Sweeps in one process: which jobs are skipped, resumed, refused and listed; the objective; the table."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from expo_ray import entry, train
from expo_ray.checkpoint.manifest import seal
from expo_ray.config.compose import compose_config, quoted
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import objective_of, parse_objective
from expo_ray.preflight.values import check_config
from expo_ray.sweep import ledger
from expo_ray.sweep.job import Job, JobEnd, differing, is_finished, own_resume
from expo_ray.sweep.ledger import sweep_table

TOY = ["profile=cpu", "model=toy", "data=toy", "verifier=toy", "trainer.steps=3"]
LENGTHS = ["rollout.max_prompt_tokens=32", "rollout.max_completion_tokens=48"]


@pytest.fixture
def argv(monkeypatch):
    """Hydra reads sys.argv; it is put back after the test."""
    monkeypatch.setattr(sys, "argv", ["train"])


def checkpoint(folder):
    """A valid checkpoint in a run's folder."""
    step = folder / "checkpoints" / "step_000001"
    step.mkdir(parents=True)
    (step / "weights").write_text("1")
    seal(step, 1, None)


def commanded(monkeypatch, job):
    """The command runs `job` in place of a training run."""

    class Jobs:
        def __call__(self, checked, folder):
            job(checked.config, folder)

        def close(self):
            pass

    monkeypatch.setattr(train, "_Jobs", Jobs)


def evaluation(value: float) -> dict:
    return {"samples": 4, "pass_at_k": {"5": {"1": value / 2, "4": value}, "all": {"1": value, "4": 1.0}}}


def finish(config, folder, finished=True):
    summary = {"finished": finished, "evaluation": evaluation(0.5) if finished else None}
    (folder / "summary.json").write_text(json.dumps(summary))


def sweep(folder, job, *overrides):
    return launched(["-m", *TOY, *LENGTHS, f"run_dir={folder}", *overrides], job)


def launched(arguments, job):
    return entry.launch(entry.check_arguments(arguments), lambda checked, folder: job(checked.config, folder))


def test_the_same_command_skips_finished_jobs_and_goes_on_with_the_others(tmp_path, argv):
    seen: list[tuple[int, str]] = []

    def first(config, folder):
        seen.append((config.seed, config.trainer.resume))
        if config.seed == 0:
            finish(config, folder)
            return
        if config.seed == 1:
            checkpoint(folder)
        raise RuntimeError("the machine went down")

    def second(config, folder):
        seen.append((config.seed, config.trainer.resume))
        finish(config, folder)

    command = ["seed=0,1,2", "eval.objective=pass@4/5"]
    assert [end.ended for end in sweep(tmp_path, first, *command).sweep] == ["finished", "failed", "failed"]
    seen.clear()
    outcome = sweep(tmp_path, second, *command)
    assert seen == [(1, "auto"), (2, "never")]
    assert [end.ended for end in outcome.sweep] == ["finished before", "finished", "finished"]
    assert [end.objective for end in outcome.sweep] == [0.5, 0.5, 0.5]


def test_jobs_of_a_sweep_never_go_on_from_each_other(tmp_path, argv):
    """Not even if a sibling has equal settings and a checkpoint, which trainer.resume=auto searches for."""
    resumed = []

    def job(config, folder):
        resumed.append(config.trainer.resume)
        checkpoint(folder)

    outcome = sweep(tmp_path, job, "seed=0,0,0", "trainer.resume=auto")
    assert len(outcome.sweep) == 3 and resumed == ["never"] * 3


def test_a_folder_with_other_settings_is_refused_and_nothing_in_it_changes(tmp_path, argv):
    sweep(tmp_path, finish, "algo=grpo,exp_grpo")
    before = (tmp_path / "1" / "config.yaml").read_text()
    outcome = sweep(tmp_path, finish, "algo=grpo,sft_gt_grpo")
    assert [end.ended for end in outcome.sweep] == ["finished before", "failed"]
    assert outcome.sweep[1].error is not None and "algo.name=exp_grpo, here algo.name=sft_gt_grpo" in str(
        outcome.sweep[1]
    )
    assert (tmp_path / "1" / "config.yaml").read_text() == before


def test_settings_that_teach_nothing_may_differ(tmp_path, argv):
    sweep(tmp_path, finish, "seed=0,1")
    outcome = sweep(tmp_path, finish, "seed=0,1", "eval.objective=pass@4/all", "logging.progress=false")
    assert [(end.ended, end.objective) for end in outcome.sweep] == [("finished before", 1.0)] * 2


def test_a_run_saved_before_a_key_existed_is_known_again(tmp_path, argv):
    sweep(tmp_path, finish, "seed=0,1")
    saved = tmp_path / "0" / "config.yaml"
    lines = [line for line in saved.read_text().splitlines() if "usage_every" not in line and "top_p" not in line]
    saved.write_text("\n".join(lines))
    config = compose_config([*TOY, *LENGTHS, "seed=0"])
    assert is_finished(tmp_path / "0", config)
    with pytest.raises(ConfigError, match=r"seed=1, here seed=0"):
        is_finished(tmp_path / "1", config)
    saved.write_text("no_such_key: 1\n")
    with pytest.raises(ConfigError, match="not a configuration of this version"):
        is_finished(tmp_path / "0", config)


def test_a_stopped_job_ends_the_sweep_and_the_code_is_130(tmp_path, argv, monkeypatch, capsys):
    commanded(monkeypatch, lambda config, folder: finish(config, folder, finished=config.seed == 0))
    arguments = ["-m", *TOY, *LENGTHS, f"run_dir={tmp_path}", "seed=0,1,2,3"]
    assert train.main(arguments) == 130
    assert [end.ended for end in ledger.ends(tmp_path)] == ["finished", "stopped", "not started", "not started"]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path)


def test_failed_jobs_are_listed_at_the_end_and_the_code_is_1(tmp_path, argv, monkeypatch, capsys):
    def job(config, folder):
        if config.seed == 1:
            raise RuntimeError("an actor died")
        finish(config, folder)

    commanded(monkeypatch, job)
    assert train.main(["-m", *TOY, *LENGTHS, f"run_dir={tmp_path}", "seed=0,1,2"]) == 1
    told = capsys.readouterr()
    assert [line.split("│")[3].strip() for line in told.out.splitlines() if line.startswith("│")] == [
        "finished",
        "failed",
        "finished",
    ]
    said = [line for line in told.err.splitlines() if not line.startswith("sweep: ")]
    assert said == [f"error: job 1: RuntimeError: an actor died (more: {tmp_path}/1/logs/driver.log)"]
    assert train.main(["-m", *TOY, *LENGTHS, f"run_dir={tmp_path}", "seed=0,1,2"]) == 1


def test_each_start_and_end_of_a_job_is_a_line_on_standard_error(tmp_path, argv, capsys):
    def job(config, folder):
        if config.seed == 1:
            raise RuntimeError("an actor died")
        finish(config, folder)

    for _ in range(2):
        sweep(tmp_path, job, "seed=0,1", "eval.objective=pass@4/5")
    lines = re.sub(r"after \d+ s", "after N s", capsys.readouterr().err).splitlines()
    said = [line for line in lines if line.startswith("sweep: ")]
    assert [line.split(":")[1].strip() for line in said] == [
        "job 0 starts (0 of 2 done)",
        "job 0 finished after N s, objective 0.500 (1 of 2 done)",
        "job 1 starts (1 of 2 done)",
        "job 1 failed after N s (2 of 2 done)",
        "job 0 finished before, objective 0.500 (1 of 2 done)",
        "job 1 starts (1 of 2 done)",
        "job 1 failed after N s (2 of 2 done)",
    ]
    assert "seed=0" in said[0] and "run_dir" not in said[0]


def test_a_sweep_without_a_named_folder_can_be_continued_by_its_recorded_command(tmp_path, argv, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = launched(["-m", *TOY, *LENGTHS, "seed=0,1"], finish)
    command = json.loads((outcome.folder / "sweep.json").read_text())["command"]
    assert f"run_dir='\"'\"'{outcome.folder}'\"'\"'" in command or f"run_dir='{outcome.folder}'" in command


def test_a_checkpoint_decides_where_a_job_goes_on(tmp_path):
    config = compose_config([*TOY])
    assert own_resume(tmp_path, config) == "never"
    checkpoint(tmp_path)
    assert own_resume(tmp_path, config) == "auto"
    (tmp_path / "checkpoints/step_000001/weights").write_text("2")  # damaged: auto would look at the other jobs
    assert own_resume(tmp_path, config) == "never"
    config.trainer.resume = "/somewhere"
    assert own_resume(tmp_path, config) == "/somewhere"


def test_a_jobs_own_command_keeps_nothing_of_the_sweep(tmp_path):
    folder = tmp_path / "it's a=1,2 {folder}" / "3"
    overrides = ("hydra/launcher=local", "hydra.launcher.max_jobs=2", "run_dir=x", "algo=grpo", "data.levels=[5]")
    job = Job(3, overrides, folder)
    arguments = job.command("python", resume="never")[3:]
    assert arguments == ["algo=grpo", "data.levels=[5]", f"run_dir={quoted(str(folder))}", "trainer.resume='never'"]
    config = compose_config(arguments)
    assert (config.run_dir, config.algo.name, config.data.levels) == (str(folder), "grpo", [5])


@pytest.mark.parametrize(
    ("text", "value"), [("pass@4/5", (4, "5")), ("pass@1/all", (1, "all")), ("pass@64/?", (64, "?"))]
)
def test_objectives_are_parsed(text, value):
    assert parse_objective(text) == value


@pytest.mark.parametrize("text", ["pass@0/all", "pass@4", "pass@4/6", "reward/mean", ""])
def test_other_objectives_are_refused(text):
    with pytest.raises(ConfigError, match=r"pass@K/LEVEL"):
        check_config(compose_config([*TOY, *LENGTHS, f"eval.objective='{text}'"]))


def test_an_objective_needs_its_samples(tmp_path):
    with pytest.raises(ConfigError, match=r"eval\.samples=8 or more, not 4"):
        check_config(compose_config([*TOY, *LENGTHS, "eval.objective=pass@8/all", f"run_dir={tmp_path}"]))
    assert objective_of({"evaluation": evaluation(0.25)}, "pass@4/5") == 0.25
    assert objective_of({"evaluation": None}, "pass@4/5") is None


def test_the_table_names_what_sets_jobs_apart():
    overrides = [["a=1", "seed=0"], ["a=1", "seed=1"]]
    assert differing(overrides) == [["seed=0"], ["seed=1"]]
    assert differing(overrides[:1]) == [["a=1", "seed=0"]]
    ends = [JobEnd(i, own, f"/s/{i}", "finished", 1.25, None, 0.5) for i, own in enumerate(overrides)]
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(sweep_table(ends, Path("/s"), "pass@4/5"))
    text = console.export_text()
    assert "a=1" not in text and "seed=1" in text and "pass@4/5" in text and "0.500" in text


def test_the_time_of_earlier_calls_is_kept(tmp_path):
    ledger.begin(tmp_path, "x")
    content = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps(content | {"seconds": 30.0, "seconds_before": 12.0}))
    ledger.begin(tmp_path, "x")
    assert json.loads((tmp_path / "sweep.json").read_text())["seconds_before"] == 42.0


def test_optuna_looks_for_the_objective_and_goes_on_where_it_stopped(tmp_path, argv):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    tried: list[float] = []

    def job(config, folder):
        tried.append(config.algo.beta)
        if len(tried) == 3:
            raise RuntimeError("an actor died")
        value = 1.0 - abs(config.algo.beta - 0.3)
        (folder / "summary.json").write_text(json.dumps({"finished": True, "evaluation": evaluation(value)}))

    command = ["hydra/sweeper=optuna_maximize", "hydra.sweeper.n_trials=5", "algo.beta=interval(0,1)"]
    command += ["eval.objective=pass@4/5"]
    outcome = sweep(tmp_path, job, *command)
    assert [end.ended for end in outcome.sweep].count("failed") == 1 and len(set(tried)) == 5
    best = (tmp_path / "optimization_results.yaml").read_text()
    nearest = min((beta for i, beta in enumerate(tried) if i != 2), key=lambda beta: abs(beta - 0.3))
    assert f"algo.beta: {nearest}" in best
    before = list(tried)
    again = sweep(tmp_path, job, *command)
    assert tried[5:6] == [before[2]]
    assert [end.ended for end in again.sweep][:3] == ["finished before", "finished before", "finished"]


def test_optunas_own_choice_would_look_for_the_worst_and_is_refused(tmp_path, argv):
    with pytest.raises(ConfigError, match="hydra/sweeper=optuna_maximize"):
        entry.check_arguments(["-m", *TOY, *LENGTHS, "hydra/sweeper=optuna", "algo.beta=interval(0,1)"])


def test_signals_reach_python_again_after_a_sweep(tmp_path, argv):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs this behind it
    try:
        sweep(tmp_path, finish, "seed=0,1")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
