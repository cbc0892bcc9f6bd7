"""The policy as a Hugging Face folder."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from transformers import AutoTokenizer, GenerationConfig

from expo_ray.config.schema import Config


def export(lm: Any, source: Any, config: Config, folder: Path, writes: bool) -> Callable[[], None] | None:
    """Collects the full weights from all ranks, to be written with tokenizer and generation settings.

    Args:
        lm: the language model inside the policy's engine.
        source: its weight source; every rank must iterate it.
        config: names the base model, whose tokenizer and generation settings are kept.
        folder: where to write; made if missing.
        writes: whether this rank keeps and writes the weights.

    Returns:
        What writes them, in any thread and at any later time; None on ranks that do not write. It does not touch
        `lm`: at ZeRO-3 a look at a parameter while the model runs is a collective call.
    """
    state = {}
    for name, tensor in source:
        if writes:
            state[name] = tensor.detach().to("cpu", copy=True)
    if not writes:
        return None
    settings = copy.deepcopy(lm.config)
    settings.use_cache = True  # which the learner turned off for training
    settings.architectures = [type(lm).__name__]
    settings.dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(state, folder, metadata={"format": "pt"})
        settings.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
        tokenizer.save_pretrained(folder)
        if (Path(config.model.path) / "generation_config.json").exists():
            GenerationConfig.from_pretrained(config.model.path).save_pretrained(folder)
        if config.model.trust_remote_code:
            for code in Path(config.model.path).glob("*.py"):
                shutil.copy(code, folder)

    return write
