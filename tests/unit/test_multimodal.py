"""A model with an encoder of images (Gemma 3 from 4B), which is trained and sampled with text only."""

import json
from types import SimpleNamespace

import pytest
import torch

from expo_ray.config.schema import Config, LoraConfig
from expo_ray.learner.lora import add_adapters
from expo_ray.learner.micro_batches import lay_out
from expo_ray.learner.policy import TokenScorer, _load, beyond_text
from expo_ray.learner.saving import export
from expo_ray.sync.source import ZeroWeightSource


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Seven random layers, one of which sees further than four tokens, and an encoder of two."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    folder = tmp_path_factory.mktemp("gemma")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    text = {"vocab_size": 90, "num_hidden_layers": 7, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4}
    image = {"num_hidden_layers": 2, "image_size": 28, "patch_size": 14, "vision_use_head": False}
    torch.manual_seed(0)
    text |= {"initializer_range": 0.2}
    shape = Gemma3Config(text_config=sizes | text, vision_config=sizes | image, mm_tokens_per_image=1)
    Gemma3ForConditionalGeneration(shape).save_pretrained(folder)
    return folder


def loaded(folder):
    config = Config()
    config.model.path = str(folder)
    return _load(config), config


def test_only_what_text_passes_is_trained(gemma, capsys):
    lm, _ = loaded(gemma)
    frozen = beyond_text(lm)
    assert {name.split(".")[1] for name in frozen} == {"vision_tower", "multi_modal_projector"}
    assert "39 tensors that text does not pass are frozen (model.vision_tower." in capsys.readouterr().err
    rows, scorer = [[5, 6, 7], [8] * 9], TokenScorer(lm, 4)
    found, _ = scorer(lay_out(rows, [[1, 2], [3, 4, 5]], packed=False), 1.0, "none", 5)
    found.sum().backward()
    assert {name for name, weight in lm.named_parameters() if weight.grad is None} == set(frozen)
    with torch.no_grad():
        logits = [lm(torch.tensor([[*rows[1], 3, 4, 5]])).logits[0].log_softmax(-1)]
    wanted = [logits[0][8 + place, token] for place, token in enumerate((3, 4, 5))]
    torch.testing.assert_close(found[-3:].detach(), torch.stack(wanted))


@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj"]])
def test_adapters_are_on_layers_of_the_text(gemma, targets):
    lm, _ = loaded(gemma)
    add_adapters(lm, LoraConfig(rank=2, target_modules=targets), seed=0)
    trained = [name for name, weight in lm.named_parameters() if weight.requires_grad]
    assert trained and all("language_model" in name and "lora_" in name for name in trained)


def test_the_policy_is_written_whole(gemma, tmp_path):
    """Its encoders, and what makes their inputs, are there as they were: images can be read again behind a training."""
    lm, config = loaded(gemma)
    made = gemma / "preprocessor_config.json"
    made.write_text("{}")
    config.model.path = str(gemma)
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("expo_ray.learner.saving.AutoTokenizer.from_pretrained", lambda *_, **__: tokenizer)
        export(lm, ZeroWeightSource(lm), config, tmp_path, writes=True)()
    again, _ = loaded(tmp_path)
    assert all(torch.equal(weight, again.get_parameter(name)) for name, weight in lm.named_parameters())
    assert (tmp_path / made.name).read_text() == "{}"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(lm).__name__]
