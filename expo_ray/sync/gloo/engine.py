"""vLLM weight transfer over Gloo, for rollout engines with no GPU: the engine's side.

The learner's rank 0 sends (gloo.trainer), and each rollout rank receives over its own link (gloo.link). Sending,
receiving and loading overlap: two buckets are on their way while a third is loaded.
"""

import ctypes
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from expo_ray.runtime.waits import Deadline
from expo_ray.sync.gloo.buckets import BUCKETS_UNDER_WAY, Bucket, ParamMeta, plan_buckets, unpack
from expo_ray.sync.gloo.link import RECEIVER, SHORTEST_S, GlooLink, join_store
from expo_ray.sync.gloo.loading import DirectLoader, LiveParameters, direct_loader, finish_reload

logger = logging.getLogger(__name__)

NamedTensors = list[tuple[str, torch.Tensor]]

BACKEND = "gloo"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def register(backend: str = BACKEND, receiver: str = "reload") -> str:
    """Registers our receivers with vLLM in this process; must precede building the engine. Idempotent.

    Args:
        backend: gloo, ipc or nccl.
        receiver: sync.receiver; on CPU it has no meaning.

    Returns:
        The name of the backend for vLLM's WeightTransferConfig.
    """
    name = backend if backend == BACKEND or receiver == "reload" else f"{backend}_{receiver}"
    registry = WeightTransferEngineFactory._registry
    if BACKEND not in registry:
        WeightTransferEngineFactory.register_engine(BACKEND, GlooWeightTransferEngine)
    if name not in registry:
        bases = (LiveParameters, registry[backend]())
        WeightTransferEngineFactory.register_engine(name, type(name, bases, {"required": receiver == "live"}))
    return name


@dataclass(kw_only=True)
class GlooWeightTransferInitInfo(WeightTransferInitInfo):
    """What a rollout worker needs to connect; `rank_offset` is its first rank (the sender is rank 0)."""

    master_address: str
    master_port: int
    rank_offset: int
    bucket_bytes: int
    timeout_s: float


@dataclass
class GlooWeightTransferUpdateInfo(WeightTransferUpdateInfo):
    """The tensors of one round, in the order in which they are sent."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    seconds: float
    """What is left of the sender's deadline."""

    def metadata(self) -> list[ParamMeta]:
        """Zips the lists. Raises ValueError if they differ in length, AttributeError for an unknown dtype."""
        return [
            ParamMeta(name, getattr(torch, dtype), tuple(shape))
            for name, dtype, shape in zip(self.names, self.dtype_names, self.shapes, strict=True)
        ]


@dataclass
class ReceivePhases:
    """Seconds of a round in the rollout worker: waiting for bytes, loading (with repacking), finishing."""

    wait: float = 0.0
    load: float = 0.0
    finish: float = 0.0


class GlooWeightTransferEngine(WeightTransferEngine[GlooWeightTransferInitInfo, GlooWeightTransferUpdateInfo]):
    """Receives checkpoint-format weights and loads them directly if the model allows it (gloo.loading), otherwise
    through vLLM's layerwise reload."""

    init_info_cls = GlooWeightTransferInitInfo
    update_info_cls = GlooWeightTransferUpdateInfo

    link: GlooLink | None = None
    phases = ReceivePhases()
    _bucket_bytes = 0
    _direct: DirectLoader | None = None

    def init_transfer_engine(self, init_info: GlooWeightTransferInitInfo) -> None:
        """Connects to the sender. WeightReceiver has dropped an earlier connection."""
        if self.device.type == "cpu":
            keep_freed_memory()
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = join_store(init_info.master_address, init_info.master_port, init_info.timeout_s)
        self.link = GlooLink(store, rank, RECEIVER, init_info.timeout_s)
        self._bucket_bytes = init_info.bucket_bytes

    def start_weight_update(self) -> None:
        """Opens a round. Its loader is chosen later, when the names of its tensors are known."""
        self.phases = ReceivePhases()
        self._direct = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives and loads all weights of the round.

        Any error closes the link, so that the sender fails at once instead of waiting for this rank.
        """
        try:
            self.receive_weights(self.parse_update_info(update_info))
        except BaseException:
            self.shutdown()
            raise

    def receive_weights(self, update_info: GlooWeightTransferUpdateInfo) -> None:
        """Loads each bucket while the next ones arrive. Raises RuntimeError if the link breaks or times out."""
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check

        if self.link is None:
            raise RuntimeError("the Gloo link is closed: init_weight_transfer_engine must come first")
        metadata = update_info.metadata()
        load = self._open_loader([meta.name for meta in metadata])
        with disable_mtp_completeness_check():
            plan = plan_buckets(metadata, self._bucket_bytes)
            received = self._receive(self.link, plan, Deadline(update_info.seconds))
            while (weights := self._next_weights(received)) is not None:
                began = time.perf_counter()
                load(weights)
                self.phases.load += time.perf_counter() - began
                del weights

    def finish_weight_update(self) -> None:
        """Closes the round and packs what is not packed yet, including tied heads."""
        began = time.perf_counter()
        if self._direct is not None:
            self._direct.finish()
        else:
            finish_reload(self.model, self.model_config)
        self.phases.finish = time.perf_counter() - began

    def _open_loader(self, names: list[str]) -> Callable[[NamedTensors], object]:
        """Chooses what loads this round's tensors. WeightReceiver has removed the traces of a broken round."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        model: Any = self.model
        self._direct = direct_loader(model) if self.device.type == "cpu" else None
        if self._direct is not None and self._direct.covers(names):
            return self._direct.load
        self._direct = None
        initialize_layerwise_reload(model)
        return model.load_weights

    def shutdown(self) -> None:
        """Drops the connection; the engine can still sample."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def _next_weights(
        self, received: Iterator[list[tuple[str, torch.Tensor]]]
    ) -> list[tuple[str, torch.Tensor]] | None:
        began = time.perf_counter()
        weights = next(received, None)
        self.phases.wait += time.perf_counter() - began
        return weights

    @staticmethod
    def _receive(link: GlooLink, plan: list[Bucket], deadline: Deadline) -> Iterator[NamedTensors]:
        # Each bucket gets fresh memory instead of a ring buffer: layerwise reload keeps views of a bucket until the
        # layer is complete.
        under_way: deque[tuple[Bucket, torch.Tensor, list[torch.distributed.Work]]] = deque()
        tag = 0
        for bucket in [*plan, *[None] * BUCKETS_UNDER_WAY]:
            if bucket is not None:
                memory = torch.empty(bucket.nbytes, dtype=torch.uint8)
                works = []
                for message in bucket.messages:
                    works.append(link.receive(memory[message.offset : message.offset + message.nbytes], tag))
                    tag += 1
                under_way.append((bucket, memory, works))
            if under_way and (bucket is None or len(under_way) > BUCKETS_UNDER_WAY):
                arrived, memory, works = under_way.popleft()
                for work in works:
                    work.wait(timedelta(seconds=max(SHORTEST_S, deadline.left)))
                yield unpack(arrived, memory)


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks for the next sync. Returning them costs more than the transfer itself.

    Every sync allocates and frees each weight about three times; by default the kernel has to clear all those pages
    again (docs/sync.md has the figures). Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        logger.info("this C library has no mallopt: syncs will be slower")
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
