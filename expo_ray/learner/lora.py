"""LoRA with peft: adapters on the policy, the policy without them as reference policy, merged weights, and the export.

`inject_adapter_in_model` keeps the language model's own class and parameter names, so nothing else in the learner
depends on LoRA.
"""

import copy
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLora
from peft import PeftModel, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from expo_ray.config.errors import did_you_mean
from expo_ray.config.schema import LoraConfig
from expo_ray.files import model_file
from expo_ray.learner.micro_batches import Entropy, Layout
from expo_ray.sync.source import Entry, ZeroWeightSource, lora_entries

ALL_LINEAR = ["all-linear"]


def add_adapters(lm: Any, lora: LoraConfig, seed: int) -> None:
    """Adds adapters to the model and freezes everything else.

    B starts at 0, so the policy starts as the base model; A is drawn from `seed`, the same on every rank.

    Raises:
        ValueError: a target module is not a linear layer of the model.
    """
    targets = list(lora.target_modules)
    if targets != ALL_LINEAR:
        _check_targets(lm, targets)
    beyond_text = [name.removesuffix(".weight") for name, own in lm.named_parameters() if not own.requires_grad]
    adapters = PeftLora(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if targets != ALL_LINEAR else ALL_LINEAR[0],
        exclude_modules=beyond_text or None,
    )
    # Loading the model may have drawn random numbers.
    torch.manual_seed(seed)
    inject_adapter_in_model(adapters, lm)


@contextmanager
def adapters_off(lm: Any) -> Iterator[None]:
    """Makes the model compute what the base model computes, for the body of a with statement."""
    layers = _adapted_layers(lm)
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapter(adapter: str, base: str, tokenizer: str, folder: str, trust_remote_code: bool) -> None:
    """Loads an adapter on its base model and writes what both compute together, as a whole Hugging Face model.

    Args:
        adapter: an adapter folder.
        base: its base model, a folder or hub id.
        tokenizer: where the tokenizer is.
        folder: where to write; made if missing.
        trust_remote_code: model.trust_remote_code.

    Raises:
        ValueError: the adapter lacks weights for layers of the base that it names, or has some that are not numbers.
    """
    # The base's own generation settings are copied as they are: transformers refuses to write some of what it reads.
    lm = AutoModelForCausalLM.from_pretrained(
        base, dtype="auto", trust_remote_code=trust_remote_code, generation_config=GenerationConfig()
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        merged = PeftModel.from_pretrained(lm, adapter).merge_and_unload(safe_merge=True)
    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code).save_pretrained(folder)
    (Path(folder) / "generation_config.json").unlink(missing_ok=True)
    if (generation := model_file(base, "generation_config.json", fetch=True)) is not None:
        shutil.copy(generation, folder)
    for code in Path(base).glob("*.py") if trust_remote_code else ():
        shutil.copy(code, folder)


class AdaptersOffReference:
    """The reference policy: the policy's own engine with its adapters off, so the base weights exist once.

    Like the engine, it runs in whichever mode, train or eval, the caller has set.
    """

    def __init__(self, engine: Any, lm: Any) -> None:
        self.engine, self.lm = engine, lm

    @torch.no_grad()
    def __call__(
        self, layout: Layout, temperature: float, entropy: Entropy, most_scored: int, likeliest: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        with adapters_off(self.lm):
            return self.engine(layout, temperature, entropy, most_scored, likeliest)


def merged_entries(lm: Any) -> list[Entry]:
    """Entries of a weight source: each tensor of the base model, W + scaling * B A where it has an adapter.

    Raises:
        ValueError: an adapter cannot be merged into one weight (an embedding's, or a tied head's).
    """
    entries = lora_entries(lm, prefix="")
    merged = sum(entry.combine is not None for entry in entries)
    if merged != (wanted := len(_adapted_layers(lm))):
        raise ValueError(
            f"model.lora.target_modules: {wanted - merged} of {wanted} adapters cannot be merged "
            "(an embedding, or a head that shares its weight): give linear layers inside the blocks"
        )
    return entries


def export_adapter(lm: Any, base: str, folder: Path, writes: bool) -> Callable[[], None] | None:
    """Collects the adapters' weights from all ranks, to be written in peft's format, in their own precision.

    Args:
        lm: the language model inside the policy's engine, with adapters; all ranks must call this.
        base: the model that training started from, on which alone these adapters are the policy.
        folder: where to write; made if missing.
        writes: whether this rank keeps and writes the weights.

    Returns:
        A function that writes them, from any thread at any later time; None on ranks that do not write.
    """
    own = [(name.replace(".default.", "."), p) for name, p in lm.named_parameters() if ".lora_" in name]
    state = {}
    for name, tensor in ZeroWeightSource(lm, entries=[Entry(f"base_model.model.{name}", (p,)) for name, p in own]):
        if writes:
            state[name] = tensor.detach().to("cpu", copy=True)
    settings = copy.copy(lm.peft_config["default"])
    settings.base_model_name_or_path = str(Path(base).absolute()) if Path(base).is_dir() else base
    settings.target_modules = sorted(settings.target_modules)  # a set, in another order in each process
    settings.task_type, settings.inference_mode = "CAUSAL_LM", True

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings.save_pretrained(str(folder))

    return write if writes else None


def _adapted_layers(lm: Any) -> list[Any]:
    return [module for module in lm.modules() if isinstance(module, BaseTunerLayer)]


def _check_targets(lm: Any, targets: list[str]) -> None:
    """Raises ValueError for a name that matches no layer; peft ignores it as long as another name matches."""
    linear = [name for name, module in lm.named_modules() if isinstance(module, torch.nn.Linear)]
    leaves = sorted({name.rpartition(".")[2] for name in linear})
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ValueError(
                f"model.lora.target_modules: the model has no linear layer {target!r}{did_you_mean(target, leaves)} "
                f"(linear layers: {', '.join(leaves)})"
            )
