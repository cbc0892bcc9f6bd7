"""Loads received bytes straight into CPU engines; vLLM's own reload would copy everything twice.

vLLM's layerwise reload gives each layer fresh memory, copies its tensors there, packs them for the CPU's matrix
kernels and frees the memory. In plain dense decoders the parts of a fused weight (q, k and v) are adjacent in the
received bucket, so the weight can be packed from there.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from expo_ray.sync import PLAIN_MODELS
from expo_ray.sync.proof import AS_HEAD, Digest, digests_of

logger = logging.getLogger(__name__)


def forget_half_loaded(model: torch.nn.Module) -> None:
    """Removes what a broken round had loaded; vLLM keeps it and would count those tensors twice in the next round."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.load_numel = 0
        info.loaded_weights.clear()


def finish_reload(model: torch.nn.Module, model_config: Any) -> None:
    """Finishes vLLM's reload and repairs tied heads."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    finalize_layerwise_reload(model, model_config)
    repair_tied_heads(model)


def repair_tied_heads(model: torch.nn.Module) -> int:
    """Gives every tied lm_head on CPU the packed weights of its embedding; returns how many were repaired.

    vLLM's CPU layers compute with a packed copy of the weight. A reload loads and packs the embedding, but leaves the
    tied head, which has no tensor of its own in a checkpoint, with a packed copy of the old weights.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
    )

    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    embeddings = {
        layer.weight.data_ptr(): layer
        for layer in layers
        if not isinstance(layer, ParallelLMHead) and layer.weight.device.type == "cpu"
    }
    repaired = 0
    for head in layers:
        embedding = embeddings.get(head.weight.data_ptr()) if isinstance(head, ParallelLMHead) else None
        if embedding is None:
            continue
        plain = type(head.quant_method) is type(embedding.quant_method) is UnquantizedEmbeddingMethod
        if plain and hasattr(embedding, "cpu_linear"):
            head.cpu_linear = embedding.cpu_linear  # packed from the same weights just now
        else:
            quant_method: Any = head.quant_method
            quant_method.process_weights_after_loading(head)
        repaired += 1
    return repaired


@dataclass(eq=False)
class _Target:
    """One parameter of the engine and the checkpoint tensors that it is stacked from, in order."""

    layer: Any
    leaf: str
    rows: tuple[int, ...]
    """Of each part, along the first axis."""
    parts: dict[int, torch.Tensor] = field(default_factory=dict)

    def take(self, part: int, tensor: torch.Tensor) -> None:
        """Raises ValueError for a shape that does not fit."""
        if tensor.shape[0] != self.rows[part]:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} arrived where {self.rows[part]} rows belong")
        self.parts[part] = tensor
        if len(self.parts) == len(self.rows):
            whole = stacked([self.parts[index] for index in range(len(self.rows))])
            self.parts = {}
            self._apply(whole)

    def _apply(self, whole: torch.Tensor) -> None:
        from vllm.model_executor.layers.linear import LinearBase

        if self.leaf == "weight" and isinstance(self.layer, LinearBase):
            if whole.shape[1] != self.layer.input_size:
                raise ValueError(f"a weight of {whole.shape[1]} columns arrived where {self.layer.input_size} belong")
            # Packing replaces the parameter by an empty one, so each round needs a new parameter to pack.
            weight = whole.to(self.layer.params_dtype)
            self.layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            self.layer.quant_method.process_weights_after_loading(self.layer)
            return
        # In place, because a tied head shares this memory and rows of padding must stay zero.
        getattr(self.layer, self.leaf).data[: whole.shape[0]].copy_(whole)


class DirectLoader:
    """Loads a model's checkpoint tensors without vLLM's reload."""

    def __init__(self, targets: dict[str, tuple[_Target, int]], heads: list[tuple[Any, Any]]) -> None:
        self._targets = targets
        self._heads = heads

    def covers(self, names: Iterable[str]) -> bool:
        """Whether these are exactly the tensors that the model is made from."""
        return set(names) == self._targets.keys()

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Takes tensors in any order and packs each layer when its last one has arrived. Raises ValueError."""
        for name, tensor in weights:
            target, part = self._targets[name]
            try:
                target.take(part, tensor)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    @property
    def names(self) -> set[str]:
        """The checkpoint tensors that the model is made from."""
        return set(self._targets)

    def held(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the tensors that the model computes with now, each under its name in a checkpoint."""
        for target in dict.fromkeys(target for target, _ in self._targets.values()):
            names = {part: name for name, (of, part) in self._targets.items() if of is target}
            rows = computed_with(target.layer, target.leaf)[: sum(target.rows)].split(target.rows)
            yield from ((names[part], tensor) for part, tensor in enumerate(rows))
        tensors = {id(target.layer): name for name, (target, _) in self._targets.items() if target.leaf == "weight"}
        for head, embedding in self._heads:
            if embedding is not None and hasattr(head, "cpu_linear"):
                tied = computed_with(head, "weight")[: head.org_vocab_size]
                yield tensors[id(embedding)] + AS_HEAD, tied

    def finish(self) -> None:
        """Packs the heads, tied or not. A tied embedding shares the head's packed copy: nothing reads its own."""
        for head, embedding in self._heads:
            head.quant_method.process_weights_after_loading(head)
            if embedding is not None:
                embedding.cpu_linear = head.cpu_linear


def computed_with(layer: Any, leaf: str) -> torch.Tensor:
    """A layer's parameter as its kernel reads it.

    On CPU the kernel has a packed copy of a weight. It is read by multiplying it with the unit matrix, which is exact:
    each result is one weight times 1, plus zeros.
    """
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    parameter: torch.Tensor = getattr(layer, leaf)
    if leaf == "bias":
        return parameter.to(layer.params_dtype)  # some of vLLM's CPU kernels keep a float32 copy
    if leaf != "weight" or not isinstance(layer, (LinearBase, ParallelLMHead)) or not hasattr(layer, "cpu_linear"):
        return parameter
    inputs = layer.input_size if isinstance(layer, LinearBase) else layer.embedding_dim
    packed: torch.Tensor = layer.cpu_linear(torch.eye(inputs, dtype=parameter.dtype), parameter, None)
    return packed.t().contiguous()


def held_digests(model: torch.nn.Module) -> dict[str, Digest]:
    """Digests a model's weights by their names in a checkpoint.

    Raises:
        NotImplementedError: they cannot be traced to such names. It counts as a refusal: a replacement of the engine
            would have the same layers.
    """
    loader = direct_loader(model)
    if loader is None:
        raise NotImplementedError(
            f"sync.digest_every cannot compare {type(model).__name__} tensor by tensor: use sync.digest_every=0"
        )
    with torch.no_grad():
        return digests_of(loader.held())


class LiveParameters:
    """Mixin for vLLM's receivers: loads into the parameters that the engine computes with, without a reload.

    vLLM's reload copies each layer into fresh memory and from there into the parameters, and its IPC receiver copies
    each tensor before that: four copies in all with the sender's. Where a model's parameters are used as they are
    loaded, which is so for plain dense models on a GPU, the sender's copy and this one are enough. Addresses stay, so
    CUDA graphs stay valid. What is not plain goes through vLLM's reload, unless `required`.
    """

    required = False
    model: Any
    _missing: set[str] | None = None
    """Tensors of the open round that have not arrived; None: it goes through vLLM's reload."""

    def start_weight_update(self) -> None:
        """Opens a round.

        Raises:
            RuntimeError: the model is not plain, and sync.receiver=live asks for this way of loading.
        """
        loader = direct_loader(self.model)
        if loader is None and self.required:
            raise RuntimeError(
                f"sync.receiver=live loads plain dense models only, not {type(self.model).__name__} with these layers: "
                "use sync.receiver=reload"
            )
        self._missing = None if loader is None else loader.names
        if self._missing is None:
            logger.info("%s is loaded by vLLM's reload", type(self.model).__name__)
            super().start_weight_update()  # type: ignore[misc]

    def receive_weights(self, update_info: Any) -> None:
        """Loads one request's tensors."""
        if self._missing is not None and getattr(self, "packed", False) and hasattr(self, "_packed_importer"):
            self._load_shared(update_info)
        else:
            super().receive_weights(update_info)  # type: ignore[misc]
        if self._missing is not None:
            self._missing -= set(update_info.names)

    def finish_weight_update(self) -> None:
        """Closes the round.

        Raises:
            RuntimeError: tensors of the model have not arrived.
        """
        if self._missing is None:
            super().finish_weight_update()  # type: ignore[misc]
            return
        if hasattr(self, "_packed_importer"):
            self._packed_importer.close()
        if self._missing:
            raise RuntimeError(f"the round ended without {len(self._missing)} tensors, first {min(self._missing)}")

    def _load_shared(self, update_info: Any) -> None:
        """Copies from the sender's memory into the parameters. vLLM waits for the copies before it answers."""
        from vllm.distributed.weight_transfer.packed_tensor import unpack_tensor

        device: torch.device = self.device  # type: ignore[attr-defined]
        card = str(torch.cuda.get_device_properties(device).uuid)
        if card not in update_info.ipc_handles:
            raise ValueError(f"the sender has no memory on the engine's card {card}")
        handle = list(update_info.ipc_handles[card])
        handle[6] = device.index  # the sender's number of the card may be another one
        shared = self._packed_importer.rebuild(handle)[: sum(update_info.tensor_sizes)]  # type: ignore[attr-defined]
        types = [getattr(torch, name) for name in update_info.dtype_names]
        info = update_info
        self.model.load_weights(unpack_tensor(shared, info.names, info.shapes, types, info.tensor_sizes))


def direct_loader(model: torch.nn.Module) -> DirectLoader | None:
    """Describes how this model is made from checkpoint tensors, and loads them; None if anything is unusual."""
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
    )

    if type(model).__name__ not in PLAIN_MODELS:
        return None
    mapping: dict[str, list[str]] = model.packed_modules_mapping
    targets: dict[str, tuple[_Target, int]] = {}
    embeddings: dict[int, Any] = {}
    heads: list[tuple[Any, Any]] = []
    for path, module in model.named_modules():
        layer: Any = module
        if isinstance(layer, (LinearBase, VocabParallelEmbedding)):
            plain = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
            if type(layer.quant_method) not in plain or layer.tp_size != 1:
                return None
        if isinstance(layer, ParallelLMHead):
            tied_to = embeddings.get(layer.weight.data_ptr())
            heads.append((layer, tied_to))
            if tied_to is not None:
                continue
        elif isinstance(layer, VocabParallelEmbedding):
            embeddings[layer.weight.data_ptr()] = layer
        for leaf, parameter in layer._parameters.items():
            if parameter is None:
                continue
            if parameter.device.type == "meta":
                return None  # a reload that broke left it without memory, which the next reload allocates
            rows = _rows(layer, parameter)
            owner, _, own = path.rpartition(".")
            stems = [f"{owner}.{part}" for part in mapping[own]] if own in mapping else [path]
            if len(stems) != len(rows):
                return None
            target = _Target(layer, leaf, rows)
            targets |= {f"{stem}.{leaf}": (target, index) for index, stem in enumerate(stems)}
    return DirectLoader(targets, heads)


def stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenates the parts along the first axis: a view if they are adjacent in memory, otherwise a copy."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    end = first.data_ptr()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() and part.dtype == first.dtype
        if not same or part.data_ptr() != end or not part.is_contiguous():
            return torch.cat(list(parts))
        end += part.nbytes
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return first.as_strided(shape, first.stride())


def _rows(layer: Any, parameter: torch.Tensor) -> tuple[int, ...]:
    """Rows of each checkpoint tensor that the parameter is stacked from. The layer knows them: a packed parameter is
    empty."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if isinstance(layer, LinearBase):
        return tuple(getattr(layer, "output_partition_sizes", None) or [layer.output_size])
    if isinstance(layer, VocabParallelEmbedding):
        return (layer.org_vocab_size,)
    return (parameter.shape[0],)
