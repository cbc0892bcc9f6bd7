"""vLLM weight transfer over Gloo: the learners' side. Rank 0 sends; the other ranks take part in gathering."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, ClassVar, Protocol, Self

import torch
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)

from expo_ray.runtime.waits import Deadline
from expo_ray.sync.errors import SyncError, SyncTimeout
from expo_ray.sync.gloo.buckets import Bucket, Message, pack, plan_buckets
from expo_ray.sync.gloo.engine import (
    BACKEND,
    BUCKETS_UNDER_WAY,
    GlooWeightTransferInitInfo,
    GlooWeightTransferUpdateInfo,
)
from expo_ray.sync.gloo.link import SENDER, SHORTEST_S, GlooLink, open_store

CAUSE_WAIT_S = 5.0
"""After a broken transfer: how long to wait for the worker's own error, which says more than the broken socket."""


class BoundedClient(VLLMWeightSyncClient, Protocol):
    """A client whose calls, and what is transferred meanwhile, share one deadline."""

    deadline: Deadline


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """Trainer-side init info. `peer_names[i]` is the worker of rollout rank i + 1, for messages."""

    backend: ClassVar[str] = BACKEND

    master_address: str
    peer_names: list[str]
    bucket_bytes: int = 64 << 20
    timeout_s: float = 300.0


@dataclass
class _UnderWay:
    """A bucket that is being sent, with its tensors: Gloo reads their memory until the bucket has arrived."""

    index: int
    works: list[tuple[int, "torch.distributed.Work"]] = field(default_factory=list)
    payloads: list[torch.Tensor] = field(default_factory=list)


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Rank 0 sends each bucket to every rollout rank; other learner ranks only take part in gathering."""

    init_info_cls = GlooTrainerInitInfo

    def __init__(self, init_info: GlooTrainerInitInfo, *, client: BoundedClient, source: WeightSource) -> None:
        super().__init__(client=client, source=source, is_sender=init_info.is_sender)
        self._info, self._bounds = init_info, client
        self._links: list[GlooLink] = []

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: BoundedClient, source: WeightSource | None = None
    ) -> Self:
        """Connects rank 0 to every rollout rank. Raises SyncError, SyncTimeout, or ValueError without a source."""
        if source is None:
            raise ValueError("the Gloo backend sends all weights and needs a WeightSource")
        engine = cls(init_info, client=client, source=source)
        if engine.is_sender:
            engine._connect()
        return engine

    def _connect(self) -> None:
        info, deadline = self._info, self._bounds.deadline
        store = open_store(info.master_address, info.timeout_s)
        worker_info = GlooWeightTransferInitInfo(
            master_address=info.master_address,
            master_port=store.port,
            rank_offset=1,
            bucket_bytes=info.bucket_bytes,
            timeout_s=info.timeout_s,
        )
        with _call_during(self.client.init_weight_transfer_engine, asdict(worker_info)) as answer:
            for peer, name in enumerate(info.peer_names, start=1):
                try:
                    self._links.append(GlooLink(store, peer, SENDER, max(0.1, deadline.left)))
                except RuntimeError as error:
                    self.shutdown()
                    _raise_worker_error(answer)
                    raise SyncTimeout(
                        f"rollout worker {name} did not connect in {deadline.seconds:g} s: {error}", (name,)
                    ) from error
            answer.result()

    def send_weights(self) -> None:
        """Runs one round, on every learner rank. Raises SyncError or SyncTimeout, which name the late worker."""
        assert self.source is not None
        metadata = self.source.metadata()
        pairs = checked(self.source, metadata)
        plan = plan_buckets(metadata, self._info.bucket_bytes)
        if not self.is_sender:
            _exhaust(pairs)
            return
        update = GlooWeightTransferUpdateInfo(
            names=[meta.name for meta in metadata],
            dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metadata],
            shapes=[list(meta.shape) for meta in metadata],
            seconds=self._bounds.deadline.left,
        )
        try:
            self.client.start_weight_update()
            with _call_during(self.client.update_weights, asdict(update)) as answer:
                try:
                    self._transmit(plan, pairs)
                except SyncError:
                    self.shutdown()
                    _raise_worker_error(answer)
                    raise
                answer.result()
            self.client.finish_weight_update()
        except BaseException as error:
            self.shutdown()
            if isinstance(error, SyncError):
                # The other learner ranks are still gathering. Unless this rank gathers with them to the end, they hang,
                # and a failed sync costs the whole group.
                _exhaust(pairs)
            raise

    def shutdown(self) -> None:
        """Closes every link; rollout ranks that wait for bytes fail at once."""
        for link in self._links:
            link.close()
        self._links = []

    def _transmit(self, plan: list[Bucket], pairs: Iterator[torch.Tensor]) -> None:
        under_way: deque[_UnderWay] = deque()
        tag = 0
        for index, bucket in enumerate(plan):
            sending = _UnderWay(index)
            under_way.append(sending)
            for message in bucket.messages:
                self._post(sending, message, pairs, tag)
                tag += 1
            if len(under_way) > BUCKETS_UNDER_WAY:
                self._wait(under_way.popleft(), len(plan))
        while under_way:
            self._wait(under_way.popleft(), len(plan))
        _exhaust(pairs)

    def _post(self, sending: _UnderWay, message: Message, pairs: Iterator[torch.Tensor], tag: int) -> None:
        payload = pack(message, [next(pairs) for _ in message.slots])
        sending.payloads.append(payload)
        for peer, link in enumerate(self._links):
            try:
                sending.works.append((peer, link.send(payload, tag)))
            except RuntimeError as error:
                name = self._info.peer_names[peer]
                raise SyncError(f"rollout worker {name} is gone: {error}", (name,)) from error

    def _wait(self, sent: _UnderWay, buckets: int) -> None:
        deadline = self._bounds.deadline
        for peer, work in sent.works:
            try:
                work.wait(timedelta(seconds=max(SHORTEST_S, deadline.left)))
            except RuntimeError as error:
                name = self._info.peer_names[peer]
                where = f"bucket {sent.index + 1} of {buckets} (phase transfer)"
                if not deadline.left:
                    late = f"rollout worker {name} did not take {where} within {deadline.seconds:g} s"
                    raise SyncTimeout(late, (name,)) from error
                raise SyncError(f"rollout worker {name} broke off at {where}: {error}", (name,)) from error


def checked(source: WeightSource, metadata: list[ParamMeta]) -> Iterator[torch.Tensor]:
    """Yields the source's tensors in order. Raises ValueError if they disagree with `metadata`."""
    pairs = iter(source)
    for expected in metadata:
        name, tensor = next(pairs, (None, None))
        if name is None or tensor is None:
            raise ValueError(f"the weight source ended before {expected.name!r}, which its metadata declares")
        found = ParamMeta(name, tensor.dtype, tuple(tensor.shape))
        if found != expected:
            raise ValueError(f"the weight source yielded {found}, its metadata declares {expected}")
        yield tensor
    for name, _ in pairs:
        raise ValueError(f"the weight source yielded {name!r}, which its metadata does not declare")


@contextmanager
def _call_during(call: Callable[[dict[str, Any]], None], argument: dict[str, Any]) -> Iterator["Future[None]"]:
    """Runs a client call in a thread during the body; the thread is not joined, since the call may hang if the body
    failed."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sync-call")
    try:
        yield pool.submit(call, argument)
    finally:
        pool.shutdown(wait=False)


def _raise_worker_error(answer: "Future[None]") -> None:
    """Raises the worker's own error, if it has reported one: it says more than the broken socket."""
    with suppress(TimeoutError):
        error = answer.exception(timeout=CAUSE_WAIT_S)
        if isinstance(error, SyncError) and not isinstance(error, SyncTimeout):
            raise error


def _exhaust(pairs: Iterator[torch.Tensor]) -> None:
    for _ in pairs:
        pass
