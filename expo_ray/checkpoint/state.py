"""driver.json: the part of a run's state that is not in the learners, and the run's record files."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from expo_ray.files import write_whole
from expo_ray.messages import Prompt

ENDS = 1 << 20
"""Bytes hashed at each end of a weight file: hashing a whole large model takes minutes."""
WHOLE, SPACING, BLOCK = 1 << 26, 1 << 22, 1 << 12
"""Of what lies between them, files up to 64 MiB are hashed whole, larger ones 4 KiB in every 4 MiB: less than the
smallest weight matrix of a model of that size."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Digests of a run's inputs."""

    model: str
    """The base model, which is also the reference policy."""
    prompts: str
    """The training prompts, in their order: uids, gold answers and token ids."""
    weights: str = ""
    """What lies inside the model's weight files."""
    problems: str = ""
    """Texts of the training problems, with their solutions, tasks and the columns that are read."""
    stop_ids: list[int] = field(default_factory=list)
    """Token ids that end a completion. This and the two before are empty in states of earlier versions."""

    @property
    def base_model(self) -> str:
        """One digest of the base model's content."""
        return hashlib.sha256(f"{self.model} {self.weights}".encode()).hexdigest()


def identify(model_path: str, prompts: Sequence[Prompt], stop_ids: Sequence[int] = ()) -> Identity:
    """Computes the identity of a base model (folder or hub id), of training prompts and of what ends a completion."""
    ids, texts = hashlib.sha256(), hashlib.sha256()
    for prompt in prompts:
        problem = prompt.problem
        ids.update(f"{problem.uid}\n{problem.answers}\n".encode())
        ids.update(prompt.free_ids.tobytes() + prompt.conditioned_ids.tobytes())
        if problem.source or problem.pass_rate is not None:  # what a step draws depends on them
            ids.update(repr((problem.weight, problem.pass_rate)).encode())
        texts.update(repr((problem.uid, problem.question, problem.answers, problem.solution)).encode())
        # Tests of code, and what reward functions read. A generated task's metadata may hold sets, which have no order.
        columns = {name: value for name, value in problem.meta.items() if name != "typed_metadata"}
        if problem.task or columns:
            texts.update(repr((problem.task, columns)).encode())
    model, weights = _model(model_path)
    return Identity(model, ids.hexdigest(), weights, texts.hexdigest(), list(stop_ids))


def _model(path: str) -> tuple[str, str]:
    folder = Path(path)
    if not folder.is_dir():
        return f"{path}@{_commit(path)}", ""
    digest, inside = hashlib.sha256(), hashlib.sha256()
    names = {"config.json", *(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))}
    for name in sorted(names):
        file = folder / name
        if file.exists():
            digest.update(f"{name} {file.stat().st_size}\n".encode() + _ends(file))
            _add_inside(file, inside)
    return digest.hexdigest(), inside.hexdigest()


def _add_inside(path: Path, digest: Any) -> None:
    size = path.stat().st_size
    block, spacing = (BLOCK, SPACING) if size > WHOLE else (ENDS, ENDS)
    with path.open("rb", buffering=0) as file:
        for start in range(0, size, spacing):
            file.seek(start)
            digest.update(file.read(block))


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        first = file.read(ENDS)
        file.seek(max(0, os.fstat(file.fileno()).st_size - ENDS))
        return first + file.read(ENDS)


def _commit(hub_id: str) -> str:
    """The commit of the hub snapshot in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        if isinstance(cached := try_to_load_from_cache(hub_id, name), str):
            return Path(cached).parent.name
    return "unknown"


STATE = "driver.json"
RECORDS = ("metrics.jsonl", "samples.jsonl", "batches.jsonl", "evaluations.jsonl", "proofs.jsonl")


@dataclass(frozen=True)
class DriverState:
    """The driver's state after a step.

    Prompt order, learning rate, beta and all seeds are functions of `settings` and the step, so they need no state.
    """

    steps_done: int
    """Completed steps; also the weight version."""
    algorithm: dict[str, Any]
    """The algorithm's state: kept explanations, pairs."""
    records: dict[str, int]
    """Record file -> its length in bytes after `steps_done` steps."""
    settings: dict[str, Any]
    """The run's configuration, flat."""
    identity: Identity

    def write(self, folder: Path) -> None:
        """Writes the state to a checkpoint's folder."""
        (folder / STATE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, checkpoint: Path) -> "DriverState":
        """Reads the state from a checkpoint that was found undamaged."""
        found = json.loads((checkpoint / STATE).read_text())
        return cls(**{**found, "identity": Identity(**found["identity"])})


def record_lengths(run_folder: Path) -> dict[str, int]:
    """Returns the current length of each record file, in bytes."""
    return {name: path.stat().st_size for name in RECORDS if (path := run_folder / name).exists()}


def rewind(run_folder: Path, records: dict[str, int], source: Path | None = None) -> None:
    """Truncates the run's record files to the given lengths, which also drops torn lines.

    Args:
        run_folder: the run's folder.
        records: file name -> bytes; a file that is not listed is removed.
        source: folder of the run to copy them from; None for `run_folder`.
    """
    for name in RECORDS:
        path = (source or run_folder) / name
        kept = path.read_bytes()[: records[name]] if name in records and path.exists() else None
        if kept is None:
            (run_folder / name).unlink(missing_ok=True)
            continue
        write_whole(run_folder / name, kept)


def set_aside(run_folder: Path) -> None:
    """Renames the records of an earlier run in this folder to metrics.jsonl.1 and so on."""
    for name in RECORDS:
        path = run_folder / name
        if path.exists():
            number = next(i for i in range(1, 10_000) if not (run_folder / f"{name}.{i}").exists())
            path.rename(run_folder / f"{name}.{number}")
