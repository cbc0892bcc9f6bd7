"""LoRA in the configuration: refused values, and the memory plan."""

import pytest

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.config.resources import GIB, Resources
from expo_ray.preflight.model_folder import KNOWN
from expo_ray.preflight.plan import make_plan
from expo_ray.preflight.values import check_config

TWO_CORES = Resources("this machine", 1, 2, 8, 0, 0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.lora.rank=-1"], ["model.lora.rank=-1", "model.lora.rank=0"]),
        (["model.lora.alpha=0"], ["model.lora.alpha=0", "too small"]),
        (
            ["model.lora.dropout=0.1", "algo.updates_per_batch=2"],
            ["model.lora.dropout=0.1", "algo.updates_per_batch=2", "use model.lora.dropout=0"],
        ),
        (["model.lora.dropout=1"], ["model.lora.dropout=1", "too large"]),
        (["model.lora.rank=8", "model.lora.target_modules=[]"], ["target_modules=[]", "[all-linear]"]),
        (["model.lora.target_modules=[all-linear,q_proj]"], ["[all-linear,q_proj]", "[all-linear] alone"]),
        (["model.lora.target_modules=['q proj']"], ["'q proj'", "q_proj"]),
        (["model.lora.target_modules=[q_proj,model.embed_tokens]"], ["model.embed_tokens", "linear layers"]),
    ],
)
def test_impossible_values_are_refused_with_the_remedy(tiny_models, overrides, words):
    config = compose_config(["profile=cpu", f"model.path={tiny_models['tied']}", *overrides])
    with pytest.raises(ConfigError) as caught:
        check_config(config, TWO_CORES)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("targets", ["[all-linear]", "[q_proj,v_proj]", "[self_attn.q_proj]"])
def test_usual_targets_pass(tiny_models, targets):
    wanted = ["profile=cpu", f"model.path={tiny_models['tied']}", "model.lora.rank=8", "rollout.max_prompt_tokens=40"]
    wanted += ["rollout.max_completion_tokens=40", f"model.lora.target_modules={targets}"]
    check_config(compose_config(wanted), TWO_CORES)


def test_memory_counts_adapters_where_they_train_and_no_second_model():
    def parts(*overrides):
        wanted = ["profile=gpu", "cluster=8xh100", "learner.zero_stage=2", "algo.kl_coef=0.1", *overrides]
        return make_plan(compose_config(wanted)).actor("learner").memory.gpu

    whole, lora = parts(), parts("model.lora.rank=16")
    base = KNOWN["qwen2.5-3b"].parameters
    # Written out for Qwen2.5-3B: q, k, v, o, gate, up, down; 36 blocks; in + out of each times the rank.
    adapters = 36 * 16 * ((2048 + 2048) * 2 + (2048 + 256) * 2 + (2048 + 11008) * 3)
    ranks = 4
    assert lora["optimizer"] == pytest.approx(12 * adapters / ranks / GIB)
    assert lora["gradients"] == pytest.approx(4 * adapters / ranks / GIB)
    assert lora["weights"] == pytest.approx(2 * (base + adapters) / GIB)
    assert "reference policy" in whole and "reference policy" not in lora
    doubled = parts("model.lora.rank=32")
    assert doubled["optimizer"] == pytest.approx(2 * lora["optimizer"])
