"""What does not fit is told with remedies that do: each named override is put into the configuration and checked."""

import re

import pytest

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.resources import Resources
from expo_ray.preflight.fit import misfits
from expo_ray.preflight.model_folder import KNOWN
from expo_ray.preflight.plan import make_plan
from expo_ray.preflight.values import check_config


def machine(cores=64.0, memory=1000.0, gpus=0, card=0.0, nodes=1):
    return Resources("this machine", nodes, cores, memory, gpus, card)


def sentence_of(overrides, resources):
    with pytest.raises(ConfigError) as caught:
        check_config(compose_config([*overrides, "dry_run=true"]), resources)
    return str(caught.value)


def named(sentence):
    """The remedies of a sentence, each a list of overrides."""
    assert ": use " in sentence, sentence
    return [remedy.split() for remedy in sentence.rpartition(": use ")[2].split(" or ")]


QWEN = ["model=qwen2.5_0.5b_instruct"]
GPU = ["profile=gpu", *QWEN]


@pytest.mark.parametrize(
    ("overrides", "resources"),
    [
        (["profile=cpu", *QWEN], machine(memory=17)),
        (["profile=cpu", *QWEN, "learner.ranks=4"], machine(memory=20)),
        (["profile=cpu", *QWEN, "rollout.workers=4"], machine(memory=24)),
        (["profile=cpu", *QWEN, "rollout.kv_cache_gib=20"], machine(memory=24)),
        (["profile=cpu", *QWEN, "learner.ranks=4", "rollout.workers=3"], machine(memory=13)),
        (["profile=cpu", *QWEN, "learner.ranks=5"], machine(cores=3)),
        (["profile=cpu", *QWEN, "profile.cpus_per_actor=4"], machine(cores=2)),
        ([*GPU, "learner.ranks=4", "rollout.workers=4"], machine(gpus=4, card=79)),
        ([*GPU, "rollout.tensor_parallel=2"], machine(gpus=2, card=79)),
        (["profile=gpu", "model=qwen2.5_7b_instruct", "learner.zero_stage=2"], machine(gpus=8, card=79)),
        (["profile=gpu", "model=qwen2.5_7b_instruct", "learner.ranks=4"], machine(gpus=5, card=40)),
        (["profile=gpu", "model=qwen2.5_7b_instruct", "learner.ranks=7"], machine(gpus=8, card=16)),
        ([*GPU, "rollout.tensor_parallel=2", "learner.ranks=1"], machine(gpus=4, card=79, nodes=4)),
    ],
)
def test_every_remedy_that_is_named_fits(overrides, resources):
    sentence = sentence_of(overrides, resources)
    for remedy in named(sentence):
        assert remedy[0].count("=") == 1, sentence
        check_config(compose_config([*overrides, *remedy, "dry_run=true"]), resources)


def test_what_does_not_help_is_not_named():
    """0.5 B on 2 ranks in 14.5 GiB: ZeRO-3 saves 1.8 GiB, one rank less saves a process and shares nothing out."""
    overrides, resources = ["profile=cpu", *QWEN], machine(memory=14.5)
    said = [remedy for remedy in named(sentence_of(overrides, resources)) if len(remedy) == 1]
    for override in ("learner.zero_stage=3", "learner.ranks=1", "rollout.kv_cache_gib=1"):
        plan = make_plan(compose_config([*overrides, override]), resources)
        assert ([override] in said) == (not list(misfits(plan))), override


def test_an_optimizer_that_moves_to_a_small_host_may_stay_on_the_card():
    card = ["experiment=math_l5_qwen2.5_3b", "cluster=1xh100", "learner.offload_between_updates=true"]
    sentence = sentence_of([*card, "trainer.checkpoint_async=false"], machine(gpus=1, memory=40, card=79))
    assert "GiB of host memory" in sentence
    assert ["learner.offload_between_updates=false"] in named(sentence)


def test_a_model_that_can_never_fit_is_told_what_would():
    sentence = sentence_of(["profile=cpu"], machine(memory=30))
    found = re.search(r"GiB of host memory.*use a smaller model.path, ([\w.-]+) at most$", sentence)
    assert found, sentence
    largest = sorted(KNOWN, key=lambda name: KNOWN[name].parameters)[:5]
    fitting = []
    for name in largest:
        plan = make_plan(compose_config(["profile=cpu", f"model.path={name}"]), machine(memory=30))
        fitting += [] if list(misfits(plan)) else [name]
    assert found.group(1) == fitting[-1] and len(fitting) < len(largest)


def test_no_model_fits_into_nothing():
    assert re.search(
        "even qwen2.5-0.5b does not fit there, use a smaller model.path or a larger machine$",
        sentence_of(["profile=cpu"], machine(memory=1)),
    )


def test_the_gpu_profile_is_no_remedy_where_there_is_no_gpu():
    assert "profile=gpu" not in sentence_of(["profile=cpu"], machine(memory=30))


def test_an_engine_needs_all_its_cards_on_one_node():
    overrides = [*GPU, "rollout.tensor_parallel=2", "learner.ranks=2"]
    assert list(misfits(make_plan(compose_config(overrides), machine(gpus=4, card=79, nodes=2)))) == []
    sentence = sentence_of(overrides, machine(gpus=4, card=79, nodes=4))
    assert sentence.startswith("rollout.tensor_parallel=2: an engine needs 2 GPUs on one node")
    assert "has at most 1" in sentence
