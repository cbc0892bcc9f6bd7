"""LoRA adapters on a plain model: refused targets, the base model with adapters off, and their initial values."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from expo_ray.config.schema import LoraConfig


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapted(folder: Path, targets: list[str]) -> Any:
    from expo_ray.learner.lora import add_adapters

    lm = load(folder)
    add_adapters(lm, LoraConfig(rank=2, target_modules=targets), seed=0)
    return lm


def test_a_target_that_the_model_lacks_is_refused(tiny_models):
    with pytest.raises(ValueError, match=r"no linear layer 'q_porj'; did you mean 'q_proj'\?"):
        adapted(tiny_models["tied"], ["v_proj", "q_porj"])
    names = [name for name, _ in adapted(tiny_models["tied"], ["v_proj", "self_attn.q_proj"]).named_parameters()]
    assert sum("lora_A" in name for name in names) == 4


def test_an_adapter_on_a_tied_head_is_refused(tiny_models):
    from expo_ray.learner.lora import merged_entries

    with pytest.raises(ValueError, match="1 of 3 adapters cannot be merged"):
        merged_entries(adapted(tiny_models["tied"], ["v_proj", "lm_head"]))
    assert len(merged_entries(adapted(tiny_models["untied"], ["v_proj", "lm_head"]))) > 3


def test_adapters_are_on_again_after_an_error(tiny_models):
    from expo_ray.learner.lora import adapters_off

    lm = adapted(tiny_models["tied"], ["all-linear"])
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    trained = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    row = torch.tensor([[3, 4, 5]])
    on, base = lm(row).logits, load(tiny_models["tied"])(row).logits
    with pytest.raises(RuntimeError, match="inside"), adapters_off(lm):
        assert torch.equal(lm(row).logits, base)
        raise RuntimeError("inside")
    assert torch.equal(lm(row).logits, on) and not torch.allclose(on, base)
    assert {name for name, parameter in lm.named_parameters() if parameter.requires_grad} == trained


def test_initial_adapters_depend_on_the_seed_only(tiny_models):
    torch.manual_seed(99)
    first = copy.deepcopy(adapted(tiny_models["tied"], ["all-linear"]).state_dict())
    torch.rand(7)
    second = adapted(tiny_models["tied"], ["all-linear"]).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
