"""Checks that model and data can be loaded and that the tokenizer can read the problems, without heavy imports.

An adapter as model.path is merged into its base model before a run starts, in a process of its own.
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.model_path import (
    ADAPTER_CONFIG,
    adapter_base,
    adapter_folder,
    tokenizer_of,
    weights_of,
)
from expo_ray.config.schema import Config
from expo_ray.files import HUB_ID, model_file
from expo_ray.messages import Problem
from expo_ray.preflight.model_folder import MERGED
from expo_ray.preflight.plan import Plan

HOST = "huggingface.co"
WAIT_S = 3.0
ASK_S = 30.0
"""Of the hub's answer about a token."""
ADAPTER_FILES = ["adapter_model.*", "*.json", "*.jinja", "*.model", "*.txt"]
"""What a run reads of an adapter on the hub: settings, weights and tokenizer."""


def fetch_adapter(config: Config) -> None:
    """Fetches an adapter that model.path names on the hub into this machine's cache, where all checks look for it.

    A whole model is left to the library that loads it, and a hub that does not answer to `check_hub`.

    Raises:
        ConfigError: an adapter whose files cannot be fetched.
    """
    path = config.model.path
    if Path(path).exists() or not HUB_ID.fullmatch(path):
        return
    whole = model_file(path, "config.json") is not None and model_file(path, ADAPTER_CONFIG) is None
    if whole or not _reachable() or model_file(path, ADAPTER_CONFIG, fetch=True) is None:
        return
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(path, allow_patterns=ADAPTER_FILES)
    except Exception as error:  # the client's errors about a connection are of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"model.path={path} is an adapter on the Hugging Face hub, and its files cannot be fetched ({reason}): try "
            "again, or give a local folder by model.path=FOLDER"
        ) from error


def check_hub(config: Config) -> None:
    """Refuses a hub model or data set that is neither in the local cache nor reachable.

    Raises:
        ConfigError: one sentence that names the key and asks for a local path.
    """
    wanted = []
    model = weights_of(config.model.path)
    if not Path(model).is_dir() and not _cached("models", model):
        key = "model.path" if model == config.model.path else "base_model_name_or_path"
        wanted.append((f"{key}={model}", f"a local folder by {key}=FOLDER"))
    data = config.data
    named = [] if data.path or data.sources else [data.hub]
    named += [entry.get("hub") for entry in [*data.sources, *data.eval_sources]]
    for hub in filter(None, named):
        if not Path(hub).is_dir() and not _cached("datasets", hub):
            wanted.append((f"data.hub={hub}", "a local file by data.path=FILE"))
    if wanted and not _reachable():
        things, remedies = (" and ".join(words) for words in zip(*wanted, strict=True))
        raise ConfigError(
            f"{things} must be fetched from the Hugging Face hub, and {HOST} cannot be reached: give {remedies}"
        )


def check_push(config: Config) -> None:
    """Asks the hub whether this machine may push there, if `trainer.push_to_hub` is set.

    Raises:
        ConfigError: no token, one that is not valid or only reads, or no way to the hub.
    """
    if config.trainer.push_to_hub is None:
        return
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    key = f"trainer.push_to_hub={config.trainer.push_to_hub}"
    login = "run hf auth login with a token that may write, or set HF_TOKEN"
    if get_token() is None:
        raise ConfigError(f"{key} needs a token of the Hugging Face hub: {login}")
    away = f"{key}: the Hugging Face hub cannot be reached from here: leave it out, and push later with hf upload"
    if not _reachable():
        raise ConfigError(away)
    found: dict[str, Any] = {}

    def ask() -> None:
        try:
            found["account"] = HfApi().whoami(cache=True)
        except Exception as error:  # the client's errors about a connection are of many kinds
            found["error"] = error

    asking = threading.Thread(target=ask, name="ask the hub", daemon=True)  # the client itself waits for ever
    asking.start()
    asking.join(ASK_S)
    error = found.get("error")
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        raise ConfigError(f"{key}: the Hugging Face hub refuses this machine's token: {login}") from error
    if (account := found.get("account")) is None:
        raise ConfigError(away) from error
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(f"{key}: this machine's token of the Hugging Face hub only reads: {login}")


def _cached(kind: str, name: str) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return (cache / f"{kind}--{name.replace('/', '--')}" / "snapshots").is_dir()


def _reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return False
    if any(os.environ.get(name) for name in ("HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # through a mirror or a proxy, which only the client itself can try
    try:
        socket.create_connection((HOST, 443), timeout=WAIT_S).close()
    except OSError:
        return False
    return True


SMALL_VOCABULARY = 1000
"""A tokenizer of up to this many tokens may know a few characters only; larger ones can spell any text."""
MOST_UNKNOWN = 0.2


def check_longest(problems: Sequence[Problem], plan: Plan) -> None:
    """Tokenises the longest question, if it could be too long or unknown to the tokenizer.

    The question is the largest part of a prompt; prompts are checked when they are built (expo_ray.prompts.loading).

    Raises:
        DataError: the question alone is longer than the model's context, or mostly unknown to its tokenizer.
    """
    config, shape = plan.config, plan.shape
    file = Path(tokenizer_of(config.model.path)) / "tokenizer.json"
    if shape is None or not problems or not file.is_file():
        return
    longest = max(problems, key=lambda problem: len(problem.question))
    if len(longest.question) <= shape.context and shape.vocabulary > SMALL_VOCABULARY:
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    ids = tokenizer.encode(longest.question).ids
    if (share := _unknown(tokenizer, ids)) > MOST_UNKNOWN:
        raise DataError(
            f"{_files(config)}: the tokenizer of {config.model.path} does not know {share:.0%} of problem "
            f"{longest.uid}: use a model that reads this text (the toy model reads data=toy only)"
        )
    if len(ids) > shape.context:
        raise DataError(
            f"{_files(config)}: problem {longest.uid} has a prompt of at least {len(ids)} tokens and the "
            f"context of {config.model.path} is {shape.context}: take it out of the data, or use a model with a "
            f"longer context"
        )


def _files(config: Config) -> str:
    return f"data.path={config.data.path}" if config.data.path else "data"


def _unknown(tokenizer: Any, ids: Sequence[int]) -> float:
    unknown = getattr(tokenizer.model, "unk_token", None)
    if not unknown or not ids:
        return 0.0
    return list(ids).count(tokenizer.token_to_id(unknown)) / len(ids)


MADE_OF = "made_of.txt"
_MERGE = (
    "import sys; from expo_ray.learner.lora import merge_adapter as merge; merge(*sys.argv[1:5], sys.argv[5] == 'True')"
)


NOT_ITS_BASE = ("missing adapter keys", "size mismatch", "not found in the base model")
"""Said where an adapter's weights do not fit the base that it names."""


def with_merged_adapter(plan: Plan, folder: Path) -> Plan:
    """Merges an adapter in model.path into its base; a whole model stays as it is.

    Args:
        plan: the run's plan.
        folder: the run's folder, which all nodes see. The whole model is written to `merged` in it, or found there if
            it was made of the same adapter.

    Returns:
        The plan of a run of the merged model.

    Raises:
        ConfigError: it cannot be merged, or not within trainer.start_s.
    """
    config = plan.config
    path, base, adapter = config.model.path, adapter_base(config.model.path), adapter_folder(config.model.path)
    if base is None or adapter is None:
        return plan
    target, made_of = folder / MERGED, f"{base} {_digest(adapter)}"
    mark = target / MADE_OF
    if not mark.is_file() or mark.read_text(encoding="utf-8") != made_of:
        print(f"model.path={path} is an adapter: merging it into {base}", file=sys.stderr, flush=True)
        for left in folder.glob(f"{MERGED}.*"):  # by a process that was killed meanwhile
            shutil.rmtree(left, ignore_errors=True)
        written = folder / f"{MERGED}.{os.getpid()}"
        try:
            _merge(config, adapter, base, written)
            (written / MADE_OF).write_text(made_of, encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            written.rename(target)
        finally:
            shutil.rmtree(written, ignore_errors=True)
    return replace(plan, config=replace(config, model=replace(config.model, path=str(target))))


def _merge(config: Config, adapter: Path, base: str, target: Path) -> None:
    path = config.model.path
    words = [str(adapter), base, tokenizer_of(path), str(target), str(config.model.trust_remote_code)]
    start = f"model.path={path} cannot be merged into {base}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MERGE, *words], capture_output=True, text=True, timeout=config.trainer.start_s
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"{start} within trainer.start_s={config.trainer.start_s:g}: use a larger trainer.start_s"
        ) from error
    if done.returncode:
        reason, remedy = _why_not_merged(done.returncode, done.stderr, target.parent)
        raise ConfigError(f"{start} ({reason}): {remedy}")


def _why_not_merged(code: int, said: str, folder: Path) -> tuple[str, str]:
    """The reason that a merge failed, and the remedy, by its exit code and standard error."""
    memory = "it needs memory for the whole model: free some, or merge it on a larger machine (peft: merge_and_unload)"
    if code < 0:
        killer = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        return f"ended by {killer}", memory
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit code {code}"
    if "MemoryError" in reason or "t allocate memory" in reason:
        return reason, memory
    if "No space left" in reason or "Disk quota" in reason:
        return reason, f"{folder} needs room for the whole model: free some, or give run_dir=FOLDER on another disk"
    if any(words in reason for words in NOT_ITS_BASE):
        return reason, "give the base that it was trained on"
    return reason, "check the files of both"


def _digest(adapter: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(adapter.glob("adapter_*")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
