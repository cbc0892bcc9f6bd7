"""Stages `model`, `learner` and `engine`: random weights of a real shape, one learner rank, one engine and its sync."""

import json
import os
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

import expo_ray
from bench.gpu.setting import GIB, Setting, copy_seconds, tell, timed
from expo_ray.config.compose import compose_config
from expo_ray.config.schema import Config
from expo_ray.messages import Problem, Prompt, RolloutRequest, Sampling, TrainingBatch, TrainingSample
from expo_ray.preflight.model_folder import KNOWN, ModelShape, model_shape
from expo_ray.preflight.plan import make_plan
from expo_ray.sync import PLAIN_MODELS

PEAK = 989e12
"""Dense bfloat16 operations per second of an H100 SXM, by its data sheet."""
SHAPES = ("0.5b", "1.5b", "3b")
FIRST_ID = 5
"""Token ids below are special in the toy tokenizer."""
GROUP = 8
"""Samples of one prompt."""
WAIT_S = 240.0


def model(setting: Setting, bound: float) -> None:
    """Writes random weights of a Qwen2.5 model's shape, and a tokenizer that has a text for each of its ids."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, Qwen2Config

    folder, base = setting.model, Path(expo_ray.__file__).parent / "world" / "base"
    folder.mkdir(parents=True, exist_ok=True)
    shape = _shape(setting)
    dtype = "float32" if setting.rehearse else "bfloat16"
    config = json.loads((base / "config.json").read_text()) | {
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096, "dtype": dtype, "layer_types": ["full_attention"] * shape.layers,
        "max_window_layers": shape.layers,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text((base / name).read_text())
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"t{i}": i for i in range(len(words), shape.vocabulary)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    torch.manual_seed(0)
    with torch.device(setting.device):
        lm = AutoModelForCausalLM.from_config(Qwen2Config.from_dict(config), dtype=getattr(torch, dtype))
    tied = "lm_head.weight" if shape.tied else ""
    weights = {name: value.contiguous().cpu() for name, value in lm.state_dict().items() if name != tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tell(parameters=shape.parameters, bytes=sum(value.nbytes for value in weights.values()))


def _shape(setting: Setting) -> ModelShape:
    if setting.rehearse:
        return replace(
            KNOWN["qwen2.5-0.5b"], hidden=64, layers=2, intermediate=128, vocabulary=150, heads=2, head_size=32
        )
    return KNOWN[f"qwen2.5-{setting.shape}"]


def _config(setting: Setting, *more: str) -> Config:
    sizes = []
    if setting.rehearse:
        sizes = ["rollout.max_prompt_tokens=32", "rollout.max_completion_tokens=32", "trainer.prompts_per_step=4"]
    return compose_config(
        ["experiment=math_l5_qwen2.5_3b", *setting.where, f"model.path={setting.model}", "algo=grpo", *sizes, *more,
         f"run_dir={setting.work / 'parts'}"]
    )  # fmt: skip


# ------------------------------------------------------------------ the learner


def learner(setting: Setting, bound: float) -> None:
    """One rank's update on a synthetic batch: speed, peak and resting memory, and what makes it faster."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
    import torch

    from expo_ray.algorithms import make_algorithm
    from expo_ray.learner.policy import compile_parts, join_group, load_policy
    from expo_ray.learner.update import Updater

    config = _config(setting, "learner.compile=false")
    config = replace(config, learner=make_plan(config).learner)
    join_group(not setting.rehearse, timedelta(seconds=120))
    engine, lm = load_policy(config)
    used = {"attention": lm.config._attn_implementation, "recomputes": config.learner.gradient_checkpointing}
    tell(optimizer=type(engine.optimizer).__name__, **used, **_memory("after_load"))
    updater = Updater(config, make_algorithm(config), engine, None, 0, 1)
    batch = training_batch(
        4 if setting.rehearse else 64, config.rollout.max_completion_tokens, _shape(setting).vocabulary
    )
    first = "packed" if config.learner.batching == "packed" else "padded"
    _update_speed(first, setting, updater, batch)
    if not setting.rehearse:
        torch.cuda.empty_cache()
    tell(**_memory("resting"))
    pairs = [(sample.prompt_ids, sample.completion_ids) for sample in batch.samples]
    tell(score_s=timed(lambda: updater.score(pairs, 1.0), setting.device, repeats=1))
    # As the profile has it; what was compiled cannot be taken back, so all that follows is compiled too.
    compile_parts(lm, engine.module, config.learner.zero_stage, **({"backend": "eager"} if setting.rehearse else {}))
    _update_speed("compiled", setting, updater, batch)
    _profile(setting, updater, replace(batch, samples=batch.samples[:8]))
    if updater.packed:
        updater.shares = True
        _update_speed("compiled_shared_prompts", setting, updater, batch)
        updater.shares, updater.packed, lm.config._attn_implementation = False, False, "sdpa"
        _update_speed("compiled_padded", setting, updater, batch)


def training_batch(count: int, longest: int, vocabulary: int) -> TrainingBatch:
    """A batch of random ids whose completions have the lengths of a reasoning model's, and GRPO's weights."""
    chance = np.random.default_rng(0)
    prompt = min(150, longest)
    prompts = chance.integers(FIRST_ID, vocabulary, (-(-count // GROUP), prompt)).astype(np.int32)
    samples = []
    for number in range(count):
        length = int(np.clip(chance.lognormal(6.1, 0.55), 8, longest))
        ids = chance.integers(FIRST_ID, vocabulary, length).astype(np.int32)
        old, advantage = chance.normal(-12, 0.1, length).astype(np.float32), float(chance.normal())
        samples.append(
            TrainingSample(
                prompts[number // GROUP], ids, "policy", 1 / (count * length), advantage=advantage, rollout_logprobs=old
            )
        )
    return TrainingBatch(0, samples)


def _memory(when: str) -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        f"{when}_gib": torch.cuda.memory_allocated() / GIB,
        f"{when}_reserved_gib": torch.cuda.memory_reserved() / GIB,
    }


def _update_speed(name: str, setting: Setting, updater: Any, batch: TrainingBatch) -> None:
    import torch

    from expo_ray.driver.throughput import model_operations

    if not setting.rehearse:
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = timed(lambda: updater.update(batch, 1e-6), setting.device, repeats=1 if setting.rehearse else 2)
    except torch.OutOfMemoryError as error:
        tell(**{name: str(error)[:300]})
        torch.cuda.empty_cache()
        return
    tokens = sum(len(sample.prompt_ids) + len(sample.completion_ids) for sample in batch.samples)
    shape = model_shape(updater.config.model.path)
    assert shape is not None
    rate = model_operations(shape, batch.samples) / seconds
    peak = {} if setting.rehearse else {"mfu": rate / PEAK, "peak_gib": torch.cuda.max_memory_allocated() / GIB}
    tell(**{name: {"s": seconds, "tokens_per_s": tokens / seconds, "tera_operations_per_s": rate / 1e12, **peak}})


def _profile(setting: Setting, updater: Any, batch: TrainingBatch) -> None:
    """Prints where the time of an update goes, operator by operator (in logs.txt)."""
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CPU if setting.rehearse else ProfilerActivity.CUDA
    with profile(activities=[kind]) as found:
        updater.update(batch, 1e-6)
    by = "self_cpu_time_total" if setting.rehearse else "self_device_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=25), flush=True)


# ------------------------------------------------------- the engine, and the sync to it


def engine(setting: Setting, bound: float) -> None:
    """Syncs to an engine beside a copy on the card; then our worker's sampling beside bare vLLM with equal requests."""
    import ray

    from expo_ray.runtime.process import environment
    from expo_ray.runtime.ray_node import join_or_start_ray

    card = [] if setting.rehearse else ["rollout.gpu_memory_utilization=0.7"]
    config = _config(setting, *card)
    config = replace(config, rollout=replace(config.rollout, max_sequences=make_plan(config).max_sequences))
    join_or_start_ray(config)
    profile, longest = config.profile, config.rollout.max_completion_tokens
    options: dict[str, Any] = {
        "num_cpus": 1,
        "num_gpus": 0 if setting.rehearse else 0.5,
        "runtime_env": {"env_vars": environment(profile.device, profile.threads_per_actor)},
    }
    began, log = time.monotonic(), str(setting.work / "parts" / "logs")
    context = config.rollout.max_prompt_tokens + longest
    worker = ray.remote(measured_worker()).options(**options).remote(config, 0, context, (1,), log)
    try:
        ray.get(worker.ready.remote(), timeout=bound)
        tell(engine_start_s=time.monotonic() - began, max_sequences=config.rollout.max_sequences)
        sender = ray.remote(SyncEnd).options(**options).remote(config, setting.device, log)
        _syncs(setting, config, worker, sender)
        _sampling(setting, config, worker)
    finally:
        for file in sorted(Path(log).glob("*.log")):
            print(f"\n---- {file.name}\n{file.read_text(errors='replace')[-12000:]}", flush=True)
        ray.shutdown()


def _sampling(setting: Setting, config: Config, worker: Any) -> None:
    import ray

    chance, count = np.random.default_rng(0), config.rollout.samples_per_prompt
    length = min(150, config.rollout.max_prompt_tokens)
    sampling = Sampling(1.0, 1.0, 0, min(512, config.rollout.max_completion_tokens))
    for turn in range(2 if setting.rehearse else 3):
        requests = []
        for number in range(config.trainer.prompts_per_step):
            ids = chance.integers(FIRST_ID, _shape(setting).vocabulary, length).astype(np.int32)
            requests.append(RolloutRequest(Prompt(Problem(str(number), "", ("",)), ids, ids), count, 0))
        began = time.monotonic()
        rollouts = ray.get(worker.generate.remote(requests, sampling, turn), timeout=WAIT_S)
        seconds = time.monotonic() - began
        tokens = sum(len(completion.token_ids) for rollout in rollouts for completion in rollout.completions)
        bare = ray.get(worker.bare.remote(requests, sampling, turn), timeout=WAIT_S)
        tell(**{f"sampling{turn}": {"s": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds, "bare_s": bare}})


def measured_worker() -> type:
    """The class of the engine's actor; its module imports Ray."""
    from bench.rollout import MeasuredWorker
    from expo_ray.sync.gloo import loading

    class Worker(MeasuredWorker):
        """A rollout worker that can be made to load as it does for a model that is not plain."""

        def load_by_reload(self, on: bool) -> None:
            loading.PLAIN_MODELS = frozenset() if on else PLAIN_MODELS

    return Worker


class SyncEnd:
    """The sending end of a sync: the weights on the card, and nothing else of a learner."""

    def __init__(self, config: Config, device: str, log_folder: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from expo_ray.runtime.process import begin
        from expo_ray.sync.sender import WeightSender
        from expo_ray.sync.source import ZeroWeightSource

        begin("sender", log_folder)
        self.config, self.device = config, device
        dtype, bucket = getattr(torch, config.rollout.dtype), config.sync.bucket_mib << 20
        self.lm = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=dtype).to(device)
        self.source = ZeroWeightSource(self.lm, dtype=dtype, bucket_bytes=bucket)
        self.sender = WeightSender(self.source, rank=0, bucket_bytes=bucket, timeout_s=config.sync.timeout_s)

    def connect(self, workers: dict[str, Any]) -> None:
        from expo_ray.sync.sender import resolve_backend

        self.sender.connect(workers, resolve_backend(self.config))

    def change(self) -> None:
        """Other weights, as after an update."""
        import torch

        with torch.no_grad():
            for parameter in self.lm.parameters():
                parameter.mul_(1.01)

    def digests(self) -> dict[str, tuple[int, int]]:
        from expo_ray.sync.proof import digests_of

        return digests_of(self.source)

    def send(self, version: int) -> dict[str, Any]:
        report = self.sender.send(version)
        return {"s": report.seconds, "bytes": report.bytes_sent, **report.phases}

    def copy_seconds(self, size: int) -> float:
        """Of a copy of so many bytes within the device's memory."""
        return copy_seconds(size, self.device)


def _syncs(setting: Setting, config: Config, worker: Any, sender: Any) -> None:
    import ray

    from expo_ray.sync.proof import compare_digests

    ray.get(sender.connect.remote({"rollout-0": worker}), timeout=WAIT_S)
    size, version = 0, 0
    for way in ("live", "reload"):
        ray.get(worker.load_by_reload.remote(way == "reload"), timeout=WAIT_S)
        for turn in range(1 if setting.rehearse else 3):
            version += 1
            ray.get(sender.change.remote(), timeout=WAIT_S)
            found = ray.get(sender.send.remote(version), timeout=WAIT_S)
            ray.get(worker.sync_probe.remote([[5, 6, 7]]), timeout=WAIT_S)  # ends the pause
            size = found["bytes"]
            tell(**{f"sync_{way}{turn}": found})
        ray.get(worker.load_by_reload.remote(False), timeout=WAIT_S)
        began = time.monotonic()
        learner = ray.get(sender.digests.remote(), timeout=WAIT_S)
        between = time.monotonic()
        held = ray.get(worker.sync_digests.remote(), timeout=WAIT_S)
        seconds = {"learner_s": between - began, "engine_s": time.monotonic() - between}
        compared = compare_digests(learner, {"rollout-0": held}, version)
        tell(**{f"digests_after_{way}": {"tensors": compared, **seconds}})
    tell(copy_s=ray.get(sender.copy_seconds.remote(size), timeout=WAIT_S))
