"""The learner's full weights for the engines, at ZeRO stages 0 to 3, with LoRA adapters merged."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from expo_ray.sync.gloo.buckets import ParamMeta


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the engine's model, and the learner's parameters from which it is computed."""

    name: str
    parameters: tuple[torch.nn.Parameter, ...]
    """The first one has the tensor's shape and dtype."""
    combine: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None = None
    """Computes the tensor from the full parameters; None if it is the parameter itself."""


def plain_entries(module: torch.nn.Module, prefix: str = "") -> list[Entry]:
    """Lists each parameter under its Hugging Face name; a tied parameter once, under its first name.

    `prefix` is what a wrapper put before the names ("module."). Raises ValueError for a name without it.
    """
    entries = []
    for name, parameter in module.named_parameters():
        if not name.startswith(prefix):
            raise ValueError(f"parameter {name!r} does not start with the prefix {prefix!r}")
        entries.append(Entry(name.removeprefix(prefix), (parameter,)))
    return entries


def lora_entries(model: torch.nn.Module, prefix: str = "base_model.model.", adapter: str = "default") -> list[Entry]:
    """Lists a peft model's base weights under their own names, adapted ones as W + scaling * B A.

    Raises ValueError for adapters that are more than that product (DoRA, embeddings, bias in B).
    """
    modules = dict(model.named_modules())
    entries = []
    for entry in plain_entries(model, prefix):
        owner, _, leaf = entry.name.rpartition(".")
        if ".lora_" in entry.name:
            continue
        if ".original_module." in entry.name:
            raise ValueError(f"cannot merge {entry.name!r}: modules_to_save is not supported")
        if not owner.endswith(".base_layer"):
            entries.append(entry)
            continue
        name = f"{owner.removesuffix('.base_layer')}.{leaf}"
        layer = modules[f"{prefix}{owner.removesuffix('.base_layer')}"]
        if leaf != "weight" or adapter not in layer.lora_A:
            entries.append(Entry(name, entry.parameters))
            continue
        if layer.use_dora.get(adapter) or layer.lora_B[adapter].bias is not None or layer.fan_in_fan_out:
            raise ValueError(f"cannot merge the adapter of {name!r}: only plain LoRA of linear layers is supported")
        pair = (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)
        entries.append(Entry(name, (*entry.parameters, *pair), _merge(layer.scaling[adapter])))
    return entries


class ZeroWeightSource:
    """Full weights of a DeepSpeed engine's module, at any ZeRO stage. It has the methods of vLLM's `WeightSource`.

    At stage 3 parameters are gathered a bucket at a time, which is a collective call: every learner rank must
    iterate. They are yielded as copies, because partitioning the bucket again frees the gathered memory. At stages 0
    to 2 the live parameters are yielded, so the learner must not train during a sync.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        dtype: torch.dtype | None = None,
        bucket_bytes: int = 64 << 20,
        prefix: str = "",
        entries: Sequence[Entry] | None = None,
    ) -> None:
        """`dtype` is the engine's, to which floating tensors are cast; None leaves them as they are.

        `bucket_bytes` bounds what is gathered at once at stage 3; a larger tensor is gathered alone.
        """
        self._entries = list(entries) if entries is not None else plain_entries(module, prefix)
        self._dtype = dtype
        self._bucket_bytes = bucket_bytes

    def metadata(self) -> list[ParamMeta]:
        """Lists name, wire dtype and full shape of each tensor, without gathering anything."""
        return [
            ParamMeta(entry.name, self._wire_dtype(entry), _full_shape(entry.parameters[0])) for entry in self._entries
        ]

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for group in self._gather_groups():
            partitioned = [p for entry in group for p in entry.parameters if hasattr(p, "ds_id")]
            with _gathered(partitioned):
                tensors = [self._full_tensor(entry, copy=bool(partitioned)) for entry in group]
            yield from zip((entry.name for entry in group), tensors, strict=True)
            del tensors

    def _full_tensor(self, entry: Entry, copy: bool) -> torch.Tensor:
        if entry.combine is not None:
            return entry.combine([p.detach() for p in entry.parameters]).to(self._wire_dtype(entry))
        return entry.parameters[0].detach().to(self._wire_dtype(entry), copy=copy)

    def _wire_dtype(self, entry: Entry) -> torch.dtype:
        own = entry.parameters[0].dtype
        return self._dtype if self._dtype is not None and own.is_floating_point else own

    def _gather_groups(self) -> Iterator[list[Entry]]:
        group: list[Entry] = []
        used = 0
        for entry in self._entries:
            size = sum(torch.Size(_full_shape(p)).numel() * p.element_size() for p in entry.parameters)
            if group and used + size > self._bucket_bytes:
                yield group
                group, used = [], 0
            group.append(entry)
            used += size
        if group:
            yield group


def _full_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """A partitioned ZeRO-3 parameter has the shape of an empty placeholder; `ds_shape` is the true shape."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _gathered(parameters: list[torch.nn.Parameter]) -> AbstractContextManager[Any]:
    if not parameters:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def _merge(scaling: float) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    def merge(full: Sequence[torch.Tensor]) -> torch.Tensor:
        weight, down, up = full
        return weight + scaling * (up @ down).to(weight.dtype)

    return merge
