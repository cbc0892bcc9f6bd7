"""The command `python -m expo_ray.train`: exit codes, one sentence, the run folder on the last line."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from expo_ray import demo, entry, evaluate
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError, DataError
from expo_ray.data import sources
from expo_ray.preflight import checks, model_folder
from expo_ray.preflight import inputs as hub
from expo_ray.preflight.inputs import check_hub
from expo_ray.train import main

LENGTHS = ["rollout.max_prompt_tokens=60", "rollout.max_completion_tokens=48"]


@pytest.fixture
def overrides(tiny_models, tmp_path) -> list[str]:
    return [
        "profile=cpu",
        f"model.path={tiny_models['tied']}",
        "model.prompt_style=base",
        "data=toy",
        "verifier=toy",
        *LENGTHS,
    ]


@pytest.fixture
def argv(monkeypatch):
    """Hydra reads sys.argv; it is put back after the test."""
    monkeypatch.setattr(sys, "argv", ["train"])


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often a command checks a configuration, parses a file of problems and reads config.json."""
    found: Counter = Counter()

    def count(module, name, as_name):
        inner = getattr(module, name)

        def counted(*arguments, **more):
            found[as_name] += 1
            return inner(*arguments, **more)

        monkeypatch.setattr(module, name, counted)

    count(checks, "check_config", "checks")
    count(sources, "read_records", "problem files")
    count(model_folder, "read_config", "config.json")
    return found


@pytest.fixture
def own_data(tmp_path) -> list[str]:
    """A file of which a tenth is held out: training and held-out problems come from the same lines."""
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"question": f"1+{n}?", "answer": str(1 + n)}) + "\n" for n in range(40)))
    return ["data=jsonl", f"data.path={file}", "data.solution_key=null"]


def test_a_dry_run_checks_parses_and_reads_once(overrides, own_data, tmp_path, argv, calls, capsys):
    assert main([*overrides, *own_data, "dry_run=true", f"run_dir={tmp_path}/run"]) == 0
    assert calls == {"checks": 1, "problem files": 1, "config.json": 1}


def test_a_run_starts_with_what_its_check_has_read(overrides, own_data, tmp_path, argv, calls, monkeypatch, capsys):
    """Up to the start of the actors: tokenizer, both sets of prompts, the search for a checkpoint."""
    started = []

    def take(self, plan, folder, context, stop_ids, events):
        started.append((plan, folder, context))
        raise RuntimeError("the actors would start here")

    monkeypatch.setattr("expo_ray.driver.actors.WarmActors.take", take)
    assert main([*overrides, *own_data, f"run_dir={tmp_path}/run"]) == 1
    assert "the actors would start here" in capsys.readouterr().err
    [(plan, folder, context)] = started
    assert folder == tmp_path / "run" and plan.config.run_dir == str(folder) and context > 48
    assert calls == {"checks": 1, "problem files": 1, "config.json": 1}


def test_an_evaluation_starts_with_what_its_check_has_read(overrides, own_data, tmp_path, calls, monkeypatch, capsys):
    class NoActors:
        def __init__(self, plan, folder, context, stop_ids):
            assert not plan.trains and plan.shape.context == 128 and context > 48
            raise KeyboardInterrupt

    monkeypatch.setattr("expo_ray.driver.actors.Actors", NoActors)
    file = next(override for override in own_data if override.startswith("data.path="))
    whole = [file.replace("data.path", "data.eval_path"), "data.solution_key=null"]
    assert evaluate.main([*overrides, "data=jsonl", *whole, f"run_dir={tmp_path}/run"]) == 130
    assert calls == {"problem files": 1, "config.json": 1}
    assert (tmp_path / "run" / "plan.txt").exists() and "chunk 0 of 1" in capsys.readouterr().err


def test_each_job_of_a_sweep_is_checked_once(overrides, own_data, tmp_path, argv, calls):
    seen = []
    command = entry.check_arguments(["-m", *overrides, *own_data, "seed=0,1", f"run_dir={tmp_path}/sweep"])
    assert calls == {"checks": 2, "problem files": 2, "config.json": 2}
    calls.clear()

    def job(checked, folder):
        seen.append((checked.config.seed, checked.plan.shape.context, folder))
        assert len(checked.problems.training) + len(checked.problems.held_out) == 40

    outcome = entry.launch(command, job)
    assert seen == [(0, 128, tmp_path / "sweep" / "0"), (1, 128, tmp_path / "sweep" / "1")]
    assert [end.error for end in outcome.sweep] == [None, None]
    assert calls == {"problem files": 2}  # each job reads its own


def test_the_demo_checks_both_runs_before_the_first_starts(tmp_path, monkeypatch, calls, capsys):
    trained = []

    def run(checked, folder, warm):
        assert calls == {"checks": 2, "config.json": 2}
        assert checked.config.run_dir == str(folder) and (folder / "plan.txt").exists()
        trained.append(checked.config.algo.name)
        (folder / "summary.json").write_text('{"finished": true}')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("expo_ray.driver.run.run", run)
    monkeypatch.setattr(demo, "_show", lambda folder: None)
    assert demo.main(["profile=cpu"]) == 0
    assert trained == ["grpo", "exp_grpo"] and calls == {"checks": 2, "config.json": 2}
    assert demo.main(["profile=cpu", "learner.zero_stage=9"]) == 2
    assert "learner.zero_stage=9" in capsys.readouterr().err


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; from expo_ray.train import main; main(['--help']); print('hydra' in sys.modules)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert time.monotonic() - began < 10
    assert done.stdout.startswith("usage:") and done.stdout.endswith("False\n")


def test_the_whole_check_imports_no_engine(overrides, tmp_path):
    code = (
        "import sys; from expo_ray.train import main; "
        f"main({[*overrides, 'dry_run=true', f'run_dir={tmp_path}/run']!r}); "
        "print(sorted({'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("argument", ["algo.betta=1", "algo=exp_gropo", "--nonsense", "algo=grpo,exp_grpo"])
def test_wrong_input_is_one_line_on_stderr_and_exit_code_2(argument, tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    assert main([argument]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and argument.lstrip("-") in told.err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_leaves_the_plan_and_the_configuration(overrides, tmp_path, capsys, argv):
    folder = tmp_path / "my run=1"
    assert main([*overrides, "dry_run=true", f"run_dir='{folder}'"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(folder)
    assert out.startswith((folder / "plan.txt").read_text())
    saved = OmegaConf.load(folder / "config.yaml")
    assert saved.run_dir == str(folder) and saved.rollout.max_completion_tokens == 48
    assert OmegaConf.to_container(saved, throw_on_missing=True)


def test_a_multirun_checks_all_jobs_first_and_gives_each_a_folder(overrides, tmp_path, capsys, argv):
    common = [*overrides, "dry_run=true", f"run_dir={tmp_path}/sweep"]
    assert main(["-m", *common, "learner.zero_stage=2,9"]) == 2
    assert not (tmp_path / "sweep").exists()
    assert main(["-m", *common, "algo=grpo,exp_grpo"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "sweep")
    names = [OmegaConf.load(tmp_path / "sweep" / job / "config.yaml").algo.name for job in "01"]
    assert names == ["grpo", "exp_grpo"]


def test_a_failed_job_does_not_end_the_sweep(overrides, tmp_path, monkeypatch, argv):
    seen = []

    def job(checked, folder):
        config = checked.config
        seen.append(config.seed)
        if config.seed == 0:
            raise RuntimeError("an actor died")
        if config.seed == 1:
            raise DataError("a prompt is too long")

    command = entry.check_arguments(["-m", *overrides, "seed=0,1,2", f"run_dir={tmp_path}/sweep"])
    outcome = entry.launch(command, job)
    assert seen == [0, 1, 2]
    assert [(end.ended, end.error) for end in outcome.sweep] == [
        ("failed", "RuntimeError: an actor died"),
        ("failed", "a prompt is too long"),
        ("finished", None),
    ]
    assert "RuntimeError: an actor died" in (tmp_path / "sweep/0/logs/driver.log").read_text()


def test_wrong_data_is_found_before_a_folder_is_made(overrides, tmp_path, capsys, argv):
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps({"question": "1+1?"}) + "\n")
    run = ["data=jsonl", f"data.path={file}", f"run_dir={tmp_path}/run"]
    assert main([*overrides, *run]) == 2
    told = capsys.readouterr().err
    assert f"{file} line 1" in told and "'answer'" in told
    assert not (tmp_path / "run").exists()


def test_the_hub_is_asked_only_for_what_is_not_here(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    here = f"model.path={tiny_models['tied']}"
    check_hub(compose_config([here, "data=toy"]))
    check_hub(compose_config([here, "data=math", "data.path=x.jsonl"]))
    with pytest.raises(ConfigError, match=r"data\.hub=.*data\.path=FILE"):
        check_hub(compose_config([here, "data=math"]))
    with pytest.raises(ConfigError, match=r"model\.path=Qwen/Qwen2.5-3B-Instruct.*model\.path=FOLDER"):
        check_hub(compose_config(["data=toy"]))
    Path(tmp_path / "models--Qwen--Qwen2.5-3B-Instruct" / "snapshots").mkdir(parents=True)
    check_hub(compose_config(["data=toy"]))


def test_jobs_for_a_cluster_are_not_checked_against_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    job = ["experiment=math_l5_qwen2.5_3b", "cluster=8xh100", f"run_dir={tmp_path}/sweep"]
    entry.check_arguments(["-m", *job, "seed=0,1", "hydra/launcher=ray_jobs"])
    with pytest.raises(ConfigError):
        entry.check_arguments(["-m", *job, "seed=0,1"])
    with pytest.raises(ConfigError, match="ask for 8 GPUs, cluster=4xh100 has 4"):
        small = ["experiment=math_l5_qwen2.5_3b", "cluster=4xh100", "rollout.workers=4", "learner.ranks=4"]
        entry.check_arguments(["-m", *small, "seed=0,1", "hydra/launcher=ray_jobs"])
