"""Checks that model and data can be loaded and that the tokenizer can read the problems, without heavy imports."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.schema import Config
from expo_ray.messages import Problem
from expo_ray.preflight.plan import Plan

HOST = "huggingface.co"
WAIT_S = 3.0


def check_hub(config: Config) -> None:
    """Refuses a hub model or data set that is neither in the local cache nor reachable.

    Raises:
        ConfigError: one sentence that names the key and asks for a local path.
    """
    wanted = []
    if not Path(config.model.path).is_dir() and not _cached("models", config.model.path):
        wanted.append((f"model.path={config.model.path}", "a local folder by model.path=FOLDER"))
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
    file = Path(config.model.path) / "tokenizer.json"
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
