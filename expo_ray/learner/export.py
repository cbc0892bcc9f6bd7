"""The policy as a Hugging Face folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        What writes them, in any thread and at any later time; None on ranks that do not write.
    """
    state = {}
    for name, tensor in source:
        if writes:
            state[name] = tensor.detach().to("cpu", copy=True)
    if not writes:
        return None

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lm.save_pretrained(folder, state_dict=state, safe_serialization=True)
        tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
        tokenizer.save_pretrained(folder)
        if (Path(config.model.path) / "generation_config.json").exists():
            GenerationConfig.from_pretrained(config.model.path).save_pretrained(folder)

    return write
