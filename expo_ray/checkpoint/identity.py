"""What a run trains and on what, by content: a folder may move, its content may not change under a resume."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expo_ray.messages import Prompt

ENDS = 1 << 20
"""Bytes hashed at each end of a weight file; hashing all of a large model takes minutes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Of one run's inputs."""

    model: str
    """The base model, which also is the reference policy."""
    prompts: str
    """The training prompts, in their order."""


def identify(model_path: str, prompts: Sequence[Prompt]) -> Identity:
    """The identity of a base model (folder or hub id) and of training prompts."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.problem.uid}\n{prompt.problem.answers}\n".encode())
        digest.update(prompt.free_ids.tobytes() + prompt.conditioned_ids.tobytes())
    return Identity(_model(model_path), digest.hexdigest())


def _model(path: str) -> str:
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{_commit(path)}"
    digest = hashlib.sha256()
    names = {"config.json", *(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))}
    for name in sorted(names):
        file = folder / name
        if file.exists():
            digest.update(f"{name} {file.stat().st_size}\n".encode() + _ends(file))
    return digest.hexdigest()


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(ENDS)
        file.seek(max(0, os.fstat(file.fileno()).st_size - ENDS))
        return first + file.read(ENDS)


def _commit(hub_id: str) -> str:
    """The commit of the hub's snapshot in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json")
    return Path(cached).parent.name if isinstance(cached, str) else "unknown"
