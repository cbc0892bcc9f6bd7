"""Writes a rank's part of a checkpoint, and the policy as a Hugging Face folder."""

import copy
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from huggingface_hub import save_torch_state_dict
from transformers import AutoTokenizer

from expo_ray.config.schema import Config
from expo_ray.files import model_file

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What makes the inputs of a multimodal model's encoders."""


def random_state() -> dict[str, Any]:
    """Returns the state of Python's, NumPy's and torch's generators."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Any]) -> None:
    """Restores a `random_state()`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


class BackgroundWriter(TorchCheckpointEngine):
    """A DeepSpeed checkpoint engine that writes in a thread and keeps errors for `problems`.

    It does not raise them: an exception on one rank would leave the others waiting in DeepSpeed's barriers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.background = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._jobs: list[Future[None]] = []

    @classmethod
    def install(cls, engine: Any) -> Self:
        """Makes this the writer of a DeepSpeed engine."""
        writer = cls()
        engine.checkpoint_engine = writer
        # DeepSpeed copies a conversion script into each checkpoint; nobody needs it, as the policy is exported too.
        engine._copy_recovery_script = lambda _folder: None
        return writer

    def save(self, state_dict: Any, path: str) -> None:
        """Writes a state; with `background`, copies it to host memory and writes it later."""
        held = _copied(state_dict) if self.background else state_dict
        self.submit(lambda: _write(held, path))

    def submit(self, write: Callable[[], None]) -> None:
        """Queues a write; unless `background`, waits for it."""
        job = self._pool.submit(write)
        self._jobs.append(job)
        if not self.background:
            job.exception()

    def problems(self, wait: bool) -> list[str] | None:
        """Reports what could not be written since the last report; None while something is still being written."""
        if not wait and not all(job.done() for job in self._jobs):
            return None
        found = [repr(error) for job in self._jobs if (error := job.exception()) is not None]
        self._jobs = []
        return found


def _write(state: Any, path: str) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _copied(state: Any) -> Any:
    """Returns the same structure with every tensor copied to host memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        held = copy.copy(state)
        for key, value in state.items():
            held[key] = _copied(value)
        return held
    if isinstance(state, list | tuple) and type(state) in (list, tuple):
        return type(state)(_copied(value) for value in state)
    return state


def export(lm: Any, source: Any, config: Config, folder: Path, writes: bool) -> Callable[[], None] | None:
    """Collects the full weights from all ranks, to be written with tokenizer and generation settings.

    Args:
        lm: the language model inside the policy's engine.
        source: its weight source; every rank must iterate it.
        config: gives the base model, whose tokenizer and generation settings are copied.
        folder: where to write; made if missing.
        writes: whether this rank keeps and writes the weights.

    Returns:
        A function that writes them, from any thread at any later time; None on ranks that do not write. The function
        must not touch `lm`: at ZeRO-3, reading a parameter while the model runs is a collective call.
    """
    state = {}
    for name, tensor in source:
        if writes:
            state[name] = tensor.detach().to("cpu", copy=True)
    if not writes:
        return None
    settings = copy.deepcopy(lm.config)
    settings.use_cache = True  # the learner turned it off for training
    settings.architectures = [type(lm).__name__]
    settings.dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(state, folder, metadata={"format": "pt"})
        settings.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
        tokenizer.save_pretrained(folder)
        # Copied as it is: transformers refuses to write what it reads (a temperature without do_sample, and the like).
        for name in ("generation_config.json", *PROCESSOR_FILES):
            if (found := model_file(config.model.path, name)) is not None:
                shutil.copy(found, folder)
        if config.model.trust_remote_code:
            for code in Path(config.model.path).glob("*.py"):
                shutil.copy(code, folder)

    return write
