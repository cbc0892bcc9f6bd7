"""Values, combinations, model folders and resources that are refused, each with its remedy."""

import ast
import copy
import functools
import inspect
import json
import math
import re
from typing import get_type_hints

import pytest
from model_folder import write_model

from expo_ray.config import schema
from expo_ray.config.compose import compose_config, groups
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import defaults, facts_of
from expo_ray.config.resources import Resources
from expo_ray.preflight.checks import check_run
from expo_ray.preflight.values import check_config

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


def schema_lines() -> dict[str, dict[str, str]]:
    """Class of the schema -> field -> the comment on its line, read from the source."""
    lines = inspect.getsource(schema).splitlines()
    classes = [node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.ClassDef)]
    return {
        each.name: {
            field.target.id: lines[field.end_lineno - 1].partition("  # ")[2]
            for field in each.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.end_lineno
        }
        for each in classes
        if each.name != "Key"
    }


def test_every_key_has_a_meaning_on_its_line_and_is_walked():
    lines = schema_lines()
    named: dict[str, str] = {}

    def walk(name: str, prefix: str) -> None:
        assert inspect.getdoc(getattr(schema, name)), f"{name} has no docstring"
        for leaf, meaning in lines[name].items():
            group = getattr(get_type_hints(getattr(schema, name))[leaf], "__name__", "")
            if group in lines:
                walk(group, f"{prefix}{leaf}.")
            else:
                named[prefix + leaf] = meaning

    walk("Config", "")
    assert set(named) == set(defaults())
    assert [key for key, meaning in named.items() if not meaning] == []


def test_the_generic_check_refuses_a_wrong_value_of_every_key_with_choices_or_bounds():
    """Each key in turn gets a value just outside what its line allows, and the sentence names it."""
    composed = compose_config(["profile=cpu"])
    limited = {key: facts_of(key) for key in defaults()}
    assert len([key for key, facts in limited.items() if facts.choices]) >= 20
    for key, facts in limited.items():
        outside = ["no such word"] if facts.choices else []
        outside += [] if facts.at_least is None else [facts.at_least - 1, math.nan]
        outside += [] if facts.at_most is None else [facts.at_most + 1]
        for value in outside:
            config = copy.deepcopy(composed)
            *parents, leaf = key.split(".")
            setattr(functools.reduce(getattr, parents, config), leaf, value)
            with pytest.raises(ConfigError, match=rf"^{re.escape(key)}={value}"):
                check_config(config, TWO_CORES)


def test_every_default_is_one_that_its_line_allows():
    for key, default in defaults().items():
        facts = facts_of(key)
        assert not facts.choices or default in facts.choices, key
        assert facts.at_least is None or default >= facts.at_least, key
        assert facts.at_most is None or default <= facts.at_most, key


def test_a_fact_of_a_group_holds_for_its_keys_until_their_line_says_otherwise():
    assert (facts_of("verifier.strict").on_resume, facts_of("verifier.workers").on_resume) == ("refused", "free")
    assert facts_of("verifier.strict").actors and facts_of("verifier.workers").actors
    assert facts_of("logging.a_key_of_another_version").on_resume == "free"
    assert facts_of("no.such.key") == schema.Key()


def test_a_misspelled_fact_of_a_key_is_an_error():
    with pytest.raises(TypeError, match="at_lest"):
        schema.key(1, at_lest=0)


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
            ["algo=exp_dpo", "verifier=python_tests", "data=jsonl", "data.path=x.jsonl"],
            ["algo.explanation_answer=gold cannot replace a wrong program", "algo.explanation_filter=true"],
        ),
        *(
            (
                [f"algo={name}", "verifier=python_tests", "data=jsonl", "data.path=x.jsonl"],
                [f"algo={name} scores the gold answer as text", "algo=exp_grpo algo.explanation_answer=own"],
            )
            for name in ("verifree", "ravr")
        ),
        (
            ["rollout.explanations_per_prompt=0", "algo.kl_conditioned_coef=0.5"],
            ["algo.kl_conditioned_coef=0.5", "rollout.explanations_per_prompt=1"],
        ),
        (["algo.dual_clip=0.5"], ["algo.dual_clip=0.5", "algo.dual_clip=0 (off)", "algo.dual_clip=3"]),
        (["algo.dual_clip=1"], ["algo.dual_clip=1 "]),
        (["rollout.tensor_parallel=2"], ["rollout.tensor_parallel=2", "needs GPUs", "rollout.tensor_parallel=1"]),
        (["learner.batching=packed"], ["learner.batching=packed", "profile=cpu", "learner.batching=padded"]),
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


@pytest.mark.parametrize("overrides", [[], ["algo.dual_clip=0"], ["algo.dual_clip=1.5", "algo.updates_per_batch=2"]])
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


@pytest.mark.parametrize(
    ("key", "remedy"), [("digest_every=4", "digest_every=0"), ("receiver=live", "receiver=reload")]
)
def test_what_must_know_an_engines_layers_is_refused_where_it_cannot(key, remedy, model):
    sizes = ["rollout.max_prompt_tokens=64", "rollout.max_completion_tokens=64", "algo=grpo"]
    card = ["profile=gpu", "learner.ranks=1", "dry_run=true", *sizes, f"sync.{key}"]
    check_config(compose_config([*card, f"model.path={model}"]), CARDS)
    sentence = refused([*card, "rollout.tensor_parallel=2", "model.path=Qwen/Qwen2.5-0.5B"], CARDS)
    assert sentence.startswith(f"sync.{key} needs whole tensors") and f"use sync.{remedy}" in sentence
    changed = json.loads((model / "config.json").read_text()) | {"architectures": ["MixtralForCausalLM"]}
    (model / "config.json").write_text(json.dumps(changed))
    sentence = refused([*card, f"model.path={model}"], CARDS)
    assert "not of MixtralForCausalLM" in sentence and sentence.endswith(f"use sync.{remedy}")


def test_gloo_has_one_receiver(model):
    sizes = ["rollout.max_prompt_tokens=64", "rollout.max_completion_tokens=64", "algo=grpo", f"model.path={model}"]
    card = ["profile=gpu", "learner.ranks=1", "dry_run=true", *sizes, "sync.backend=gloo"]
    check_config(compose_config(card), CARDS)
    assert "sync.receiver=live does nothing with" in refused([*card, "sync.receiver=live"], CARDS)


def test_a_float32_head_needs_weights_of_another_type(model):
    common = ["profile=cpu", f"model.path={model}", "model.head_dtype=float32"]
    assert "does nothing with rollout.dtype=float32 and learner.dtype=float32" in refused(common)
    check_config(compose_config([*common, "learner.dtype=bfloat16"]), TWO_CORES)


def test_records_graded_by_tests_are_no_target_either(tmp_path, monkeypatch):
    """Of a file that mixes tasks: a wrong program's target would end in the text of its tests."""
    monkeypatch.setattr("expo_ray.preflight.checks.check_longest", lambda *_: None)  # the toy model reads no words
    records = [
        {"question": f"p{i}", "answer": "assert f() == 1" if i % 2 else "7", "by": "python_tests" if i % 2 else "math"}
        for i in range(20)
    ]
    (file := tmp_path / "mixed.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    mixed = [
        "rollout.max_prompt_tokens=64",
        "rollout.max_completion_tokens=64",
        "data=jsonl",
        f"data.path={file}",
        "data.verifier_key=by",
        "verifier=math",
        "model=toy",
        "profile=cpu",
        "dry_run=true",
    ]
    with pytest.raises(ConfigError, match="cannot replace a wrong program"):
        check_run(compose_config([*mixed, f"run_dir={tmp_path}/run"]))
    check_run(compose_config([*mixed, f"run_dir={tmp_path}/run", "algo.explanation_answer=own"]))
