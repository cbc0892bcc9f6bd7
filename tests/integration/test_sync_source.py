"""The source of weights without ZeRO partitions, and LoRA merged on the way (needs vLLM's API, no engine)."""

from pathlib import Path

import pytest
import torch
from sync_world import save_tiny_qwen2

from expo_ray.sync.gloo.engine import register
from expo_ray.sync.gloo.trainer import checked
from expo_ray.sync.source import ZeroWeightSource, lora_entries


@pytest.fixture(params=["tied", "untied"])
def model(request, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(save_tiny_qwen2(tmp_path, tied=request.param == "tied"))


def test_plain_model_under_its_hugging_face_names(model, tmp_path):
    from safetensors.torch import load_file

    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    source = ZeroWeightSource(model, bucket_bytes=10_000)
    found = dict(source)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert ("lm_head.weight" in found) == (not model.config.tie_word_embeddings)


def test_metadata_and_every_pass_agree(model):
    source = ZeroWeightSource(model, dtype=torch.bfloat16, bucket_bytes=10_000)
    for _ in range(2):
        assert all(tensor.dtype == torch.bfloat16 for tensor in checked(source, source.metadata()))


def test_a_source_that_contradicts_itself_is_refused(model):
    source = ZeroWeightSource(model)
    metadata = source.metadata()
    with pytest.raises(ValueError, match="does not declare"):
        list(checked(source, metadata[:-1]))
    with pytest.raises(ValueError, match="its metadata declares"):
        list(checked(source, [metadata[1], metadata[0], *metadata[2:]]))
    with pytest.raises(ValueError, match="ended before"):
        list(checked(source, [*metadata, metadata[0]]))


def test_a_wrapper_prefix_is_stripped(model):
    wrapped = torch.nn.ModuleDict({"module": model})
    plain, stripped = ZeroWeightSource(model), ZeroWeightSource(wrapped, prefix="module.")
    assert plain.metadata() == stripped.metadata()
    with pytest.raises(ValueError, match="does not start with"):
        ZeroWeightSource(model, prefix="module.")


def test_lora_is_merged_as_peft_merges_it(model):
    from peft import LoraConfig, get_peft_model

    base_names = [meta.name for meta in ZeroWeightSource(model).metadata()]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    source = ZeroWeightSource(adapted, entries=lora_entries(adapted))
    found = {name: tensor.clone() for name, tensor in source}
    assert [meta.name for meta in source.metadata()] == base_names
    merged = dict(adapted.merge_and_unload().named_parameters())
    assert found.keys() == merged.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, merged[name], atol=1e-6), name


def test_registering_twice_is_harmless():
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    register()
    register()
    assert WeightTransferEngineFactory._registry["gloo"]().__name__ == "GlooWeightTransferEngine"


def test_vllms_ipc_buffer_holds_the_largest_tensor_and_nccl_packs_on_one_stream():
    from expo_ray.sync.sender import WeightSender

    source = ZeroWeightSource(torch.nn.Linear(1000, 250))
    for bucket, expected in ((1 << 10, 1_000_000), (1 << 21, 1 << 21)):
        sender = WeightSender(source, rank=0, bucket_bytes=bucket, timeout_s=1.0)
        assert sender._init_info("127.0.0.1", ["rollout-0"], "ipc").packed_buffer_size_bytes == expected
        assert sender._init_info("127.0.0.1", ["rollout-0"], "nccl").packed_num_buffers == 1


def test_after_a_round_that_broke_what_it_had_loaded_is_forgotten():
    from types import SimpleNamespace

    from expo_ray.rollout.receiver import WeightReceiver
    from expo_ray.sync.gloo.loading import forget_half_loaded

    calls = []

    def refuse(request):
        raise ValueError(f"not an update: {request}")

    llm = SimpleNamespace(
        update_weight_version=lambda version: None,
        start_weight_update=lambda: calls.append("start"),
        update_weights=refuse,
        apply_model=calls.append,
    )
    worker = WeightReceiver()
    worker.engine = SimpleNamespace(
        llm=llm, pause=lambda: None, take_stream=lambda: None, finish_computing=lambda: None
    )
    worker.start_weight_update()
    assert calls == ["start"]
    worker.start_weight_update()  # the round before was never finished
    assert calls == ["start", "start", forget_half_loaded]
