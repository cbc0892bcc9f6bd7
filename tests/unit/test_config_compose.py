"""From overrides to a typed configuration: groups, order of precedence, derived values, clear errors."""

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from expo_ray.config import compose as composing
from expo_ray.config.compose import CONF, compose_config, groups, sweep_jobs
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import defaults

CHOICES = [(group, choice) for group, choices in groups().items() for choice in choices]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_composes(group, choice):
    config = compose_config([f"{group}={choice}"])
    if group in ("algo", "profile", "verifier", "cluster"):
        assert getattr(config, group).name == choice


def test_every_yaml_file_belongs_to_a_group():
    known = {CONF / "train.yaml"} | {CONF / group / f"{choice}.yaml" for group, choice in CHOICES}
    assert {file for file in CONF.rglob("*.yaml") if "hydra" not in file.parts} == known


def test_the_command_line_wins_over_experiment_profile_and_group():
    config = compose_config(["experiment=math_l5_qwen2.5_3b", "profile=cpu"])
    assert (config.trainer.steps, config.trainer.prompts_per_step, config.learner.ranks) == (600, 8, 2)
    config = compose_config(["experiment=math_l5_qwen2.5_3b", "profile=cpu", "trainer.steps=2", "learner.ranks=1"])
    assert (config.trainer.steps, config.learner.ranks) == (2, 1)


def test_a_name_of_a_mapping_on_the_command_line_wins_over_the_experiment_too():
    name = "model.chat_template_kwargs.enable_thinking=false"
    config = compose_config(["experiment=math_l5_qwen2.5_3b", "profile=cpu", "model.prompt_style=base", name])
    assert config.model.chat_template_kwargs == {"enable_thinking": False}  # refused, not reset in silence


def test_the_recipe_has_the_papers_defaults():
    config = compose_config(["experiment=math_l5_qwen2.5_3b", "profile=gpu"])
    assert config.model.path == "Qwen/Qwen2.5-3B-Instruct"
    assert (config.algo.name, config.algo.beta, config.data.levels) == ("exp_grpo", 0.04, [5])
    assert (config.eval.samples, config.eval.temperature) == (4, 0.7)


def test_a_cluster_brings_its_layout():
    config = compose_config(["profile=gpu", "cluster=8xh100"])
    assert (config.rollout.workers, config.learner.ranks, config.cluster.gpus_per_node) == (4, 4, 8)


@pytest.mark.parametrize(("algo", "explanations"), [("grpo", 0), ("sft_gt_grpo", 0), ("dpo_gt", 0), ("exp_grpo", 2)])
def test_only_algorithms_with_explanations_sample_them(algo, explanations):
    config = compose_config([f"algo={algo}", "rollout.explanations_per_prompt=2"])
    assert config.rollout.explanations_per_prompt == explanations


def test_paths_are_absolute_and_a_hub_id_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    config = compose_config(["model.path=model", "data.path=problems.jsonl", "run_dir=here"])
    assert config.model.path == str(tmp_path / "model")
    assert config.data.path == str(tmp_path / "problems.jsonl")
    assert config.run_dir == str(tmp_path / "here")
    assert compose_config([]).model.path == "Qwen/Qwen2.5-3B-Instruct"


def test_the_run_folder_is_named_after_the_run():
    assert Path(compose_config(["run_name=abc"]).run_dir).parent == Path.cwd() / "runs" / "abc"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algo.betta=1", ["unknown key 'algo.betta'", "'algo.beta'"]),
        ("steps=3", ["unknown key 'steps'", "'trainer.steps'"]),
        ("algos=grpo", ["unknown key 'algos'", "'algo'"]),
        ("+trainer.epochs=3", ["unknown key 'trainer.epochs'"]),
        ("algo=exp_gropo", ["algo=exp_gropo", "'exp_grpo'", "dpo_gt"]),
        ("profile=tpu", ["profile=tpu", "cpu, gpu"]),
        ("trainer.steps=two", ["trainer.steps=two", "whole number"]),
        ("trainer.steps=1.5", ["trainer.steps=1.5", "whole number"]),
        ("dry_run=maybe", ["dry_run=maybe", "true or false"]),
        ("data.levels=[1,x]", ["data.levels=[1,x]", "list of whole numbers"]),
        ("algo.beta=nan", ["algo.beta=nan", "finite"]),
        ("algo.beta=.inf", ["algo.beta", "number"]),
        ("nonsense", ["'nonsense'", "key=value"]),
        ("run_dir=''", ["run_dir", "empty"]),
    ],
)
def test_a_wrong_override_is_told_in_one_sentence(override, words):
    with pytest.raises(ConfigError) as caught:
        compose_config([override])
    sentence = str(caught.value)
    assert "\n" not in sentence and all(word in sentence for word in words), sentence


def test_a_sweep_lists_each_combination():
    jobs = list(sweep_jobs(["algo=grpo,exp_grpo", "seed=range(0,3)", "trainer.steps=2"]))
    assert len(jobs) == 6
    assert ["algo=exp_grpo", "seed=2", "trainer.steps=2"] in jobs


def test_jobs_that_differ_in_values_compose_the_groups_once_and_share_nothing(monkeypatch):
    composed = []
    monkeypatch.setattr(composing, "compose", lambda **given: composed.append(given) or hydra.compose(**given))
    composing._of_groups.cache_clear()
    first = compose_config(["algo=grpo", "seed=1", "data.levels=[2]"])
    first.data.levels.append(5)
    second = compose_config(["seed=2", "algo=grpo", "rollout.engine_options.swap_space=1"])
    assert len(composed) == 1
    assert (second.seed, second.data.levels, second.rollout.engine_options) == (2, [5], {"swap_space": 1})
    assert (first.seed, first.data.levels, first.rollout.engine_options) == (1, [2, 5], {})


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=demo", "seed=4", "run_name=a-${seed}", "run_dir=x", "algo=dpo_gt", "seed=5"],
        ["rollout.engine_options={a: 1}", "learner.deepspeed.b=2", "profile=gpu", "run_dir=x"],
        ["data.levels=[1,2]", "data.sources=[{path: y}]", "++trainer.steps=2", "hydra.job.name=x", "run_dir=x"],
    ],
)
def test_values_after_cached_groups_are_what_hydra_composes(overrides):
    with composing._own_hydra(), hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        forced = list(map(composing.forced_mapping, overrides))
        expected = OmegaConf.to_object(hydra.compose("train", forced))
    assert composing._composed(overrides) == expected


def test_keys_reach_into_groups():
    assert {"algo.beta", "model.lora.rank", "trainer.resume", "dry_run"} <= set(defaults())
