"""The plan: parameter counts, batch sizes, shares of cores, and memory worked out by hand."""

import json

import pytest

from expo_ray.config.compose import compose_config
from expo_ray.config.resources import Resources, of_cluster
from expo_ray.preflight.model_folder import KNOWN, model_shape
from expo_ray.preflight.plan import make_plan, plan_text

GIB = 2**30
TWO_CORES = Resources("this machine", 1, 2, 8, 0, 0)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # The sum over the tensors in each model's published safetensors index.
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("gemma-3-1b", 999_885_952),
        ("gemma-3-4b", 3_880_099_328),  # without its vision tower
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248),
    ],
)
def test_known_models_have_their_published_size(name, published):
    assert KNOWN[name].parameters == published


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_a_local_model_is_counted_as_transformers_does(tiny_models, name):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_models[name])
    shape = model_shape(str(tiny_models[name]))
    assert shape is not None and shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.context == 128


def test_lora_is_counted_as_peft_does(tiny_models):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_models["tied"]), LoraConfig(r=4, target_modules="all-linear")
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = model_shape(str(tiny_models["tied"]))
    assert shape is not None and shape.lora_parameters(4) == trained


def test_batch_sizes_of_a_step():
    config = compose_config(
        [
            "profile=cpu",
            "trainer.prompts_per_step=10",
            "rollout.samples_per_prompt=4",
            "rollout.explanations_per_prompt=2",
            "rollout.max_prompt_tokens=100",
            "rollout.max_completion_tokens=50",
            "learner.tokens_per_micro_batch=600",
        ]
    )
    batch = make_plan(config, TWO_CORES).batch
    assert (batch.completions, batch.explanations, batch.samples, batch.tokens) == (40, 20, 60, 9000)
    assert batch.micro_batches_per_rank == 8  # 9000 / 2 ranks / 600 = 7.5


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["experiment=demo"], 64 * (4 + 1)),
        (["experiment=demo", "rollout.workers=3"], 107),  # 320 shared out, rounded up
        (["experiment=demo", "trainer.prompts_per_step=2"], 64),  # an evaluation asks for more than these 10
        (["experiment=demo", "trainer.prompts_per_step=2000"], 1024),
        (["experiment=demo", "rollout.max_sequences=5"], 5),
        # 24 layers x 2 heads x 64 x (key and value) x 4 bytes = 24,576 a token; 768 tokens; 1 GiB holds 56.9 of those.
        (["model.path=qwen2.5-0.5b", "trainer.prompts_per_step=40"], 56),
        (["model.path=qwen2.5-0.5b", "trainer.prompts_per_step=40", "rollout.kv_cache_gib=2"], 113),
    ],
)
def test_an_engine_decodes_what_a_step_asks_of_it_and_its_cache_holds(overrides, expected):
    plan = make_plan(compose_config(["profile=cpu", *overrides]), TWO_CORES)
    assert plan.max_sequences == expected
    assert f"each decodes up to {expected} sequences" in plan_text(plan)


@pytest.mark.parametrize(("prompts", "expected"), [(64, 64 * 9), (114, 1024), (512, 1024)])
def test_an_engine_on_a_card_decodes_up_to_1024_sequences(prompts, expected):
    recipe = ["experiment=math_l5_qwen2.5_3b", "cluster=1xh100", "dry_run=true"]
    plan = make_plan(compose_config([*recipe, f"trainer.prompts_per_step={prompts}"]))
    assert plan.config.rollout.max_sequences == 0, "the GPU profile fixes it"
    assert plan.max_sequences == expected


def test_sft_on_gold_adds_one_sample_a_prompt():
    batch = make_plan(compose_config(["profile=cpu", "algo=sft_gt_grpo"]), TWO_CORES).batch
    assert (batch.explanations, batch.samples) == (0, 8 * 4 + 8)


def test_actors_take_turns_on_two_cores_and_ray_can_place_them_all():
    plan = make_plan(compose_config(["profile=cpu"]), TWO_CORES)
    assert plan.cores == 2
    assert sum(row.count * row.ray_cpus for row in plan.actors) <= TWO_CORES.cores
    assert all(row.ray_cpus > 0 for row in plan.actors if row.name != "driver")


def test_gpu_actors_get_cards_of_their_own():
    config = compose_config(["profile=gpu", "cluster=8xh100", "rollout.workers=2", "rollout.tensor_parallel=2"])
    plan = make_plan(config)
    assert (plan.actor("rollout").gpus, plan.actor("learner").gpus, plan.gpus) == (2, 1, 8)
    assert plan.cores == 2 * 2 * 2 + 4 * 2 + 1


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 2, 2 + 4, 12), (1, 2, 2 + 1, 3), (2, 2, 1, 3), (3, 0.5, 1, 3)],
)
def test_learner_memory_by_zero_stage(stage, weights, gradients, optimizer):
    """Bytes a weight, bfloat16 on four ranks: 2 for weights; 2 for gradients and 4 for those of the step, from stage 2
    on 4 that are shared out; 12 for master weights and two moments."""
    size = 3_085_938_688
    config = compose_config(["profile=gpu", "cluster=8xh100", f"learner.zero_stage={stage}"])
    parts = make_plan(config).actor("learner").memory.gpu
    assert parts["weights"] == pytest.approx(size * weights / GIB)
    assert parts["gradients"] == pytest.approx(size * gradients / GIB)
    assert parts["optimizer"] == pytest.approx(size * optimizer / GIB)


def test_offloading_moves_the_optimizer_to_the_host():
    memory = make_plan(compose_config(["profile=gpu", "cluster=2xh100", "learner.offload_optimizer=true"]))
    row = memory.actor("learner").memory
    assert "optimizer" not in row.gpu and row.gpu["gradients"] == pytest.approx(2 * 151_936 * 2_048 / GIB)
    # 12, gradients of 4, their sum over micro-batches, and a copy of the weights
    assert row.host["optimizer"] == pytest.approx(22 * 3_085_938_688 / GIB)
    overrides = ["profile=gpu", "cluster=2xh100", "learner.offload_optimizer=true", "learner.zero_stage=3"]
    row = make_plan(compose_config(overrides)).actor("learner").memory
    assert row.host["optimizer"] == pytest.approx(20 * 3_085_938_688 / GIB)


def test_a_reference_policy_is_counted_when_there_is_one():
    def parts(*overrides):
        return make_plan(compose_config(["profile=gpu", "cluster=8xh100", *overrides])).actor("learner").memory.gpu

    assert "reference policy" not in parts()
    assert "reference policy" in parts("algo.kl_coef=0.01")
    assert "reference policy" in parts("algo=exp_dpo")


def test_a_model_of_unknown_size_is_said_to_be_unknown():
    text = plan_text(make_plan(compose_config(["profile=cpu", "model.path=someone/something"]), TWO_CORES))
    assert "size unknown" in text and "unknown of 8.0 GiB" in text


def test_the_text_names_every_actor_and_the_totals(tiny_models):
    config = compose_config(["profile=cpu", f"model.path={tiny_models['tied']}", "data=toy"])
    text = plan_text(make_plan(config, TWO_CORES))
    for words in ("rollout ", "learner ", "verifier ", "driver ", "2 of 2 cores", "0 of 0 GPUs", "32 completions"):
        assert words in text


def test_a_cluster_is_planned_by_its_own_figures():
    config = compose_config(["cluster=2x8xh100", "profile=gpu"])
    resources = of_cluster(config.cluster)
    assert resources is not None and (resources.gpus, resources.cores) == (16, 256)
    assert of_cluster(compose_config(["profile=cpu"]).cluster) is None


def test_a_model_with_unfamiliar_fields_has_no_shape(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba", "vocab_size": 5}))
    assert model_shape(str(tmp_path)) is None
