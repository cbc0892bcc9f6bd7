"""vLLM weight transfer over Gloo, for rollout engines with no GPU: the engine's side.

`register()` makes both sides known to vLLM. The learner's rank 0 sends (gloo_trainer), each rollout rank
receives over a link of its own (gloo_group). Sending, receiving and loading overlap: two buckets are
under way while a third is loaded.
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
    ParamMeta,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from expo_ray.runtime.waits import Deadline
from expo_ray.sync.gloo.buckets import Bucket, plan_buckets, unpack
from expo_ray.sync.gloo.link import RECEIVER, SHORTEST_S, GlooLink, join_store
from expo_ray.sync.gloo.loading import DirectLoader, direct_loader, finish_reload

logger = logging.getLogger(__name__)

NamedTensors = list[tuple[str, torch.Tensor]]

BACKEND = "gloo"
BUCKETS_UNDER_WAY = 2
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def register() -> None:
    """Make backend "gloo" known to vLLM in this process; call it before the engine is built. Idempotent."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, GlooWeightTransferEngine)
    if BACKEND not in WeightTransferTrainerFactory._registry:
        WeightTransferTrainerFactory.register_engine(
            BACKEND, "expo_ray.sync.gloo.trainer", "GlooTrainerWeightTransferEngine"
        )


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
        """Raises ValueError where the lists differ in length, AttributeError for an unknown dtype."""
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
    """Receives checkpoint-format weights and loads them directly where the model allows it (sync.direct),
    else through vLLM's layerwise reload."""

    init_info_cls = GlooWeightTransferInitInfo
    update_info_cls = GlooWeightTransferUpdateInfo

    link: GlooLink | None = None
    phases = ReceivePhases()
    _bucket_bytes = 0
    _direct: DirectLoader | None = None

    def init_transfer_engine(self, init_info: GlooWeightTransferInitInfo) -> None:
        """Connect to the sender. The receiver has dropped an earlier connection."""
        if self.device.type == "cpu":
            keep_freed_memory()
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = join_store(init_info.master_address, init_info.master_port, init_info.timeout_s)
        self.link = GlooLink(store, rank, RECEIVER, init_info.timeout_s)
        self._bucket_bytes = init_info.bucket_bytes

    def start_weight_update(self) -> None:
        """Open a round. How it is loaded is decided when the names of its tensors are known."""
        self.phases = ReceivePhases()
        self._direct = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load all weights of the round.

        On any error the link is closed, so that the sender fails at once instead of waiting for us.
        """
        try:
            self.receive_weights(self.parse_update_info(update_info))
        except BaseException:
            self.shutdown()
            raise

    def receive_weights(self, update_info: GlooWeightTransferUpdateInfo) -> None:
        """Load each bucket while the next ones arrive. Raises RuntimeError when the link breaks or times out."""
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
        """Close the round: pack what is left to pack, tied heads among it."""
        began = time.perf_counter()
        if self._direct is not None:
            self._direct.finish()
        else:
            finish_reload(self.model, self.model_config)
        self.phases.finish = time.perf_counter() - began

    def _open_loader(self, names: list[str]) -> Callable[[NamedTensors], object]:
        """What loads this round's tensors; the receiver has let the model forget an earlier, broken round."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        model: Any = self.model
        self._direct = direct_loader(model)
        if self._direct is not None and self._direct.covers(names):
            return self._direct.load
        self._direct = None
        initialize_layerwise_reload(model)
        return model.load_weights

    def shutdown(self) -> None:
        """Drop the connection; the engine goes on serving."""
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
        # A bucket's memory is fresh, not a ring: layerwise reload keeps views of it until a layer is complete.
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
    """Tell glibc to keep freed blocks for the next sync. Returning them costs more than the transfer itself.

    Every sync allocates and frees each weight about three times; with the default, the kernel clears all
    those pages again (docs/sync.md has the figures). Does nothing on another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        logger.info("this C library has no mallopt: syncs will be slower")
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
