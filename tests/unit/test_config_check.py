"""Values, combinations, model folders and resources that are refused, each with its remedy."""

import inspect
import re

import pytest
from model_folder import write_model

from expo_ray.config.compose import compose_config, groups, known_keys
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import value_of
from expo_ray.config.resources import Resources
from expo_ray.preflight.values import CHOICES, RANGES, check_config

TWO_CORES = Resources("this machine", 1, 2, 8, 0, 0)
CARDS = Resources("this machine", 1, 64, 500, 2, 79)


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


def refused(overrides, resources=TWO_CORES):
    with pytest.raises(ConfigError) as caught:
        check_config(compose_config(overrides), resources)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_the_cpu_defaults_pass_on_two_cores(model):
    check_config(compose_config(["profile=cpu", f"model.path={model}"]), TWO_CORES)


def test_tables_name_keys_of_the_schema():
    assert set(CHOICES) | set(RANGES) <= set(known_keys())


def test_choices_are_those_that_the_schema_tells():
    config = compose_config(["profile=cpu"])
    compared = 0
    for key, choices in CHOICES.items():
        group, leaf = key.split(".")
        source = inspect.getsource(type(getattr(config, group)))
        told = re.search(rf"^ +{leaf}: str = .*?# ((?:\w+ \| )+\w+)", source, re.MULTILINE)
        if told:
            compared += 1
            assert tuple(told.group(1).split(" | ")) == choices, key
    assert compared >= 12


def test_every_default_is_within_its_range():
    config = compose_config(["profile=cpu"])
    for key, (low, high) in RANGES.items():
        assert low <= value_of(config, key) <= (high if high is not None else float("inf")), key


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algo.policy_loss=clips"], ["algo.policy_loss=clips", "'clip'", "cispo"]),
        (["learner.zero_stage=4"], ["learner.zero_stage=4", "learner.zero_stage=3"]),
        (["learner.ranks=0"], ["learner.ranks=0", "learner.ranks=1"]),
        (["trainer.steps=0"], ["trainer.steps=0", "trainer.steps=1"]),
        (["rollout.samples_per_prompt=1"], ["rollout.samples_per_prompt=1", "2 or more"]),
        (["rollout.top_p=0.9"], ["rollout.top_p=0.9", "rollout.top_p=1.0"]),
        (["rollout.top_k=50"], ["rollout.top_k=50", "rollout.top_k=0"]),
        (["algo=exp_dpo", "rollout.explanations_per_prompt=0"], ["exp_dpo", "rollout.explanations_per_prompt=1"]),
        (
            ["rollout.explanations_per_prompt=0", "algo.kl_conditioned_coef=0.5"],
            ["algo.kl_conditioned_coef=0.5", "rollout.explanations_per_prompt=1"],
        ),
        (["algo.dual_clip=0.5"], ["algo.dual_clip=0.5", "algo.dual_clip=0 (off)", "algo.dual_clip=3"]),
        (["algo.dual_clip=1"], ["algo.dual_clip=1 "]),
        (["rollout.tensor_parallel=2"], ["rollout.tensor_parallel=2", "needs GPUs", "rollout.tensor_parallel=1"]),
        (["data.levels=[6]"], ["level 6", "1 to 5"]),
        (["data=gsm8k", "data.levels=[5]"], ["data.levels=[5]", "data.level_key"]),
        (["verifier.name=maths"], ["verifier.name=maths", "'math'"]),
        (["sync.backend=nccl"], ["sync.backend=nccl", "sync.backend=auto"]),
        (["trainer.resume=/not/there"], ["trainer.resume=/not/there", "auto"]),
        (["model.path=/not/there"], ["model.path=/not/there", "folder"]),
        (["rollout.max_prompt_tokens=1000"], ["1256 tokens", "is 1024", "rollout.max_prompt_tokens=768"]),
        (["learner.ranks=3"], ["learner.ranks=3", "3 cores", "has 2 today", "learner.ranks=2"]),
        (["rollout.workers=5"], ["rollout.workers=5", "5 cores", "has 2 today", "rollout.workers=2"]),
        (["run_dir=/proc/version/x"], ["run_dir=/proc/version/x", "another run_dir"]),
    ],
)
def test_what_cannot_run_is_refused_with_the_remedy(model, overrides, words):
    sentence = refused(["profile=cpu", f"model.path={model}", *overrides])
    assert all(word in sentence for word in words), sentence


def test_a_remedy_for_too_many_cores_works(model):
    assert "use learner.ranks=2" in refused(["profile=cpu", f"model.path={model}", "learner.ranks=3"])
    check_config(compose_config(["profile=cpu", f"model.path={model}", "learner.ranks=2"]), TWO_CORES)


def test_too_many_gpus_are_refused_with_a_layout_that_fits(model):
    wanted = ["profile=gpu", f"model.path={model}", "dry_run=true", "rollout.max_prompt_tokens=100"]
    wanted += ["rollout.max_completion_tokens=100"]
    sentence = refused([*wanted, "learner.ranks=4", "rollout.workers=4"], CARDS)
    assert "8 GPUs" in sentence and "has 2 today" in sentence
    remedy = sentence.split("use ")[1].split()
    check_config(compose_config([*wanted, *remedy]), CARDS)


def test_no_gpu_at_all_points_to_the_cpu_profile(model):
    wanted = ["profile=gpu", f"model.path={model}", "dry_run=true"]
    sentence = refused([*wanted, "rollout.max_prompt_tokens=100", "rollout.max_completion_tokens=100"])
    assert sentence.endswith("use profile=cpu")


def test_a_cluster_that_is_joined_is_not_measured_by_this_machine(model, monkeypatch):
    monkeypatch.setattr("expo_ray.preflight.plan.this_machine", lambda: TWO_CORES)
    monkeypatch.setattr("expo_ray.preflight.values.this_machine", lambda: TWO_CORES)
    many = compose_config(["profile=cpu", f"model.path={model}", "learner.ranks=8"])
    with pytest.raises(ConfigError, match="8 cores"):
        check_config(many)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_config(many)
    monkeypatch.delenv("RAY_ADDRESS")
    many.cluster.address = "auto"
    check_config(many)


def test_a_custom_resource_needs_a_cluster_that_is_joined(model, monkeypatch):
    monkeypatch.setattr("expo_ray.preflight.plan.this_machine", lambda: TWO_CORES)
    config = compose_config(["profile=cpu", f"model.path={model}", "cluster.rollout_resource=engines"])
    with pytest.raises(
        ConfigError, match=r"cluster.rollout_resource=engines: no node of this machine.*cluster.address"
    ):
        check_config(config)
    config.cluster.address = "auto"
    check_config(config)


def test_an_evaluation_needs_no_learners_card(model):
    wanted = ["profile=gpu", f"model.path={model}", "dry_run=true", "rollout.max_prompt_tokens=100"]
    one = Resources("this machine", 1, 64, 500, 1, 79)
    config = compose_config([*wanted, "rollout.max_completion_tokens=100"])
    assert check_config(config, one, training=False).gpus == 1
    with pytest.raises(ConfigError, match="2 GPUs"):
        check_config(config, one)


def test_a_real_start_needs_what_the_cluster_file_states(model, monkeypatch):
    monkeypatch.setattr("expo_ray.preflight.values.this_machine", lambda: Resources("this machine", 1, 1, 8, 0, 0))
    config = compose_config(["profile=cpu", "cluster=cpu2", f"model.path={model}", "dry_run=true"])
    check_config(config)
    config.dry_run = False
    with pytest.raises(ConfigError, match="this machine has 1 today"):
        check_config(config)


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_experiment_can_be_planned(experiment):
    on_cpu = compose_config([f"experiment={experiment}"]).data.name == "toy"
    world = ["profile=cpu", "cluster=cpu2"] if on_cpu else ["profile=gpu", "cluster=8xh100"]
    plan = check_config(compose_config([f"experiment={experiment}", "dry_run=true", *world]))
    assert plan.batch.tokens > 0


@pytest.mark.parametrize("overrides", [[], ["algo.dual_clip=0"], ["algo.dual_clip=1.5"]])
def test_the_honest_limits_pass(model, overrides):
    wanted = ["profile=cpu", f"model.path={model}", "rollout.explanations_per_prompt=0", *overrides]
    plan = check_config(compose_config(wanted), TWO_CORES)
    assert (plan.batch.explanations, plan.batch.samples) == (0, plan.batch.completions)


def test_shards_must_divide_the_heads():
    common = ["profile=gpu", "cluster=8xh100", "dry_run=true", "model=qwen2.5_0.5b_instruct", "rollout.workers=1"]
    sentence = refused([*common, "rollout.tensor_parallel=4"], None)
    assert "14 attention heads (2 for keys and values)" in sentence and "use rollout.tensor_parallel=2" in sentence
    check_config(compose_config([*common, "rollout.tensor_parallel=2"]))


def test_a_model_folder_must_be_whole(model):
    overrides = ["profile=cpu", f"model.path={model}"]
    for file in ("tokenizer_config.json", "tokenizer.json"):
        (model / file).unlink()
    assert "no tokenizer" in refused(overrides)
    write_model(model)
    (model / "model.safetensors").unlink()
    assert "no weights" in refused(overrides)
    write_model(model)
    (model / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused(overrides)
    (model / "config.json").unlink()
    assert "no config.json" in refused(overrides)
