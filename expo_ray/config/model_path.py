"""What model.path names: a whole model or an adapter of one, in a folder or by an id in the cache of the hub."""

import json
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError
from expo_ray.files import model_file

WHOLE_MODEL = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
ADAPTER_CONFIG = "adapter_config.json"


def adapter_folder(path: str) -> Path | None:
    """Where an adapter's files are: `path`, or its snapshot in the cache of the hub; None for anything else."""
    settings = model_file(path, ADAPTER_CONFIG)
    return None if settings is None or is_whole(settings.parent) else settings.parent


def adapter_base(path: str) -> str | None:
    """The base model that an adapter names, a folder or a hub id; None for anything else."""
    if (folder := adapter_folder(path)) is None:
        return None
    base = str(read_settings(folder, ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    places = [Path(base).expanduser(), folder / base] if base else []
    return next((str(place.absolute()) for place in places if place.is_dir()), base)


def weights_of(path: str) -> str:
    """Where the architecture and its weights are: `path`, or the base model of an adapter."""
    return adapter_base(path) or path


def tokenizer_of(path: str) -> str:
    """Where the tokenizer is: with an adapter, or with the base model of one that comes without; `path` otherwise."""
    if (folder := adapter_folder(path)) is None:
        return path
    return str(folder) if any((folder / name).is_file() for name in TOKENIZER_FILES) else weights_of(path)


def is_whole(folder: Path) -> bool:
    """Whether the folder has a whole model's weights."""
    return any((folder / name).is_file() for name in WHOLE_MODEL)


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a model's folder; empty if there is no such file.

    Raises:
        ConfigError: the file is not a JSON object.
    """
    file = folder / name
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ConfigError(f"model.path={folder}: {name} cannot be read as JSON ({reason}): copy it again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"model.path={folder}: {name} is not a JSON object: copy it again")
    return value
