"""LoRA with peft: adapters on the policy, the policy without them as the reference, and their merge for the engines.

`inject_adapter_in_model` keeps the language model's own class and names, so the rest of the learner sees no wrapper.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig as PeftLora
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from expo_ray.config.errors import did_you_mean
from expo_ray.config.schema import LoraConfig
from expo_ray.learner.micro_batches import Layout
from expo_ray.sync.source import Entry, lora_entries

ALL_LINEAR = ["all-linear"]


def add_adapters(lm: Any, lora: LoraConfig, seed: int) -> None:
    """Puts adapters into the model and freezes everything else.

    B starts at 0, so the policy starts as the base model; A is drawn from `seed`, alike on every rank.

    Raises:
        ValueError: a target module that is no linear layer of the model.
    """
    targets = list(lora.target_modules)
    if targets != ALL_LINEAR:
        _check_targets(lm, targets)
    adapters = PeftLora(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if targets != ALL_LINEAR else ALL_LINEAR[0],
    )
    # Loading may have drawn random numbers.
    torch.manual_seed(seed)
    inject_adapter_in_model(adapters, lm)


@contextmanager
def adapters_off(lm: Any) -> Iterator[None]:
    """The model computes what the base model computes; on the way out, also by an error, adapters are on again."""
    layers = _adapted_layers(lm)
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class AdaptersOffReference:
    """The reference policy: the policy's own engine with its adapters off, so the base weights exist once.

    Like the engine it runs in the mode, train or eval, that the caller has set.
    """

    def __init__(self, engine: Any, lm: Any) -> None:
        self.engine, self.lm = engine, lm

    @torch.no_grad()
    def __call__(
        self, layout: Layout, temperature: float, entropy_gradient: bool, most_scored: int
    ) -> tuple[Tensor, Tensor]:
        with adapters_off(self.lm):
            return self.engine(layout, temperature, entropy_gradient, most_scored)


def merged_entries(lm: Any) -> list[Entry]:
    """What a weight source hands out: each tensor of the base model, W + scaling * B A where there is an adapter.

    Raises:
        ValueError: an adapter that cannot be merged into one weight (an embedding's, or a tied head's).
    """
    entries = lora_entries(lm, prefix="")
    merged = sum(entry.combine is not None for entry in entries)
    if merged != (wanted := len(_adapted_layers(lm))):
        raise ValueError(
            f"model.lora.target_modules: {wanted - merged} of {wanted} adapters cannot be merged "
            "(an embedding, or a head that shares its weight): name linear layers inside the blocks"
        )
    return entries


def _adapted_layers(lm: Any) -> list[Any]:
    return [module for module in lm.modules() if isinstance(module, BaseTunerLayer)]


def _check_targets(lm: Any, targets: list[str]) -> None:
    """peft itself ignores a name without a layer as long as another name has one."""
    linear = [name for name, module in lm.named_modules() if isinstance(module, torch.nn.Linear)]
    leaves = sorted({name.rpartition(".")[2] for name in linear})
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ValueError(
                f"model.lora.target_modules: the model has no linear layer {target!r}{did_you_mean(target, leaves)} "
                f"(linear layers: {', '.join(leaves)})"
            )
