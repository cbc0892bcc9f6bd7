"""Checks that the disk has room for the checkpoints and records that a run will write."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from expo_ray.config.model_path import adapter_base
from expo_ray.config.schema import Config
from expo_ray.preflight.estimate import BYTES, completions_per_prompt
from expo_ray.preflight.model_folder import MERGED, ModelShape

MIB, GIB = 1 << 20, 1 << 30
RECORDS_A_STEP = 16 << 10
"""Bytes a step: a line of metrics.jsonl (2 KiB) and its TensorBoard events."""
LOGS_AN_ACTOR = 4 << 20
"""Bytes; a healthy engine wrote 30 KiB in 60 steps, a failing one writes stack traces."""
BYTES_A_TOKEN = 5
"""Bytes of a token's quoted text in samples.jsonl."""


def checkpoint_bytes(config: Config, shape: ModelShape) -> int:
    """Estimates one checkpoint: weights and optimizer as DeepSpeed writes them, and the exported policy.

    The optimizer is float32 master weights and Adam's two moments; stage 0 in float32 has no master copy. At stage 3
    the trained weights are only in the optimizer's shards. With LoRA everything but the adapters is frozen, and they
    are exported, too.
    """
    learner, rank = config.learner, config.model.lora.rank
    trained = shape.lora_parameters(rank) if rank else shape.parameters
    frozen = shape.parameters if rank else 0
    weights = frozen + (trained if learner.zero_stage < 3 else 0) + (trained if rank else 0)
    optimizer = 8 if learner.zero_stage == 0 and learner.dtype == "float32" else 12
    return weights * BYTES[learner.dtype] + trained * optimizer + shape.parameters * BYTES[config.rollout.dtype]


def record_bytes(config: Config) -> int:
    """Estimates the bytes of metrics, samples and logs over the whole run, rounded up."""
    rollout = config.rollout
    length = rollout.max_prompt_tokens + rollout.max_completion_tokens
    samples = config.logging.samples_per_step * (completions_per_prompt(config) + rollout.explanations_per_prompt)
    actors = rollout.workers + config.learner.ranks + config.verifier.workers + config.reward.workers
    a_step = RECORDS_A_STEP + samples * length * BYTES_A_TOKEN
    return config.trainer.steps * a_step + actors * LOGS_AN_ACTOR


def merged_bytes(config: Config, shape: ModelShape | None) -> int:
    """What an adapter in model.path makes of its base, a whole model in the run folder; 0 for another model.

    It has the size of the base's files, or of bfloat16 weights where the base has still to be fetched.
    """
    base = adapter_base(config.model.path)
    if base is None:
        return 0
    files = sum(file.stat().st_size for file in Path(base).glob("*.safetensors"))
    return files or (shape.parameters * BYTES["bfloat16"] if shape is not None else 0)


def checkpoints_at_once(config: Config) -> int:
    """How many checkpoints are on disk at the worst moment: those kept, and the one being written."""
    trainer = config.trainer
    most = trainer.keep_checkpoints + trainer.keep_best + 1
    if trainer.checkpoint_minutes:
        return most
    written = math.ceil(trainer.steps / trainer.checkpoint_every) if trainer.checkpoint_every else 1
    return min(most, written)


def disk_problems(config: Config, shape: ModelShape | None) -> Iterator[str]:
    """Yields a sentence if run_dir's file system has no room for the run; a model of unknown size counts as 0.

    Space of checkpoints in the run folder counts as free, because the run replaces them.
    """
    folder = Path(config.run_dir)
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(nearest).free + _taken(folder / "checkpoints") + _taken(folder / MERGED)
    each = checkpoint_bytes(config, shape) if shape is not None else 0
    count, records = checkpoints_at_once(config), record_bytes(config)
    merged = merged_bytes(config, shape)
    records += merged
    if count * each + records <= free:
        return
    remedies = [
        f"run_dir=FOLDER on a disk with {_size(count * each + records)} free",
        *_fewer(config, each, free - records),
    ]
    checkpoints = f"{count} checkpoint{'s' if count > 1 else ''} of {_size(each)}"
    merges = " and the adapter's merged model" if merged else ""
    yield (
        f"run_dir={folder}: {checkpoints} and {_size(records)} of records{merges} do not fit, the disk "
        f"of {nearest} has {_size(free)} free: use {' or '.join(remedies)}"
    )


def evaluation_disk_problems(config: Config, shape: ModelShape | None) -> Iterator[str]:
    """Yields a sentence if run_dir's file system has no room for an adapter's merged model.

    Samples are written a chunk at a time: on a full disk the evaluation stops, and the same command resumes it.
    """
    folder = Path(config.run_dir)
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free, merged = shutil.disk_usage(nearest).free + _taken(folder / MERGED), merged_bytes(config, shape)
    if merged > free:
        yield (
            f"run_dir={folder}: the adapter's merged model of {_size(merged)} does not fit, the disk of {nearest} has "
            f"{_size(free)} free: use run_dir=FOLDER on another disk"
        )


def _fewer(config: Config, each: int, room: int) -> Iterator[str]:
    """Values of trainer.keep_* that would fit, with one more checkpoint for the one being written."""
    trainer, best = config.trainer, config.trainer.keep_best
    fitting = room // each if each and room > 0 else 0
    if 1 <= fitting - 1 - best < trainer.keep_checkpoints:
        yield f"trainer.keep_checkpoints={fitting - 1 - best}"
    elif best and fitting >= 2:
        yield f"trainer.keep_best=0 trainer.keep_checkpoints={min(trainer.keep_checkpoints, fitting - 1)}"
    elif fitting == 1 and trainer.checkpoint_every:
        yield "trainer.checkpoint_every=0 (one checkpoint, at the end)"


def _taken(folder: Path) -> int:
    """Bytes of the files below a folder; 0 if there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{max(1, round(count / MIB))} MiB"
