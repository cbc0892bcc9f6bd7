"""Weight transfer over Gloo: the learners' side. Rank 0 sends; the other ranks take part in gathering.

Nothing here imports vLLM, which would cost every learner rank seconds at its start. The workers get the same requests
as from vLLM's own trainer engines; vLLM checks them on the engine's side (gloo.engine).
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch

from expo_ray.runtime.waits import Deadline
from expo_ray.sync import SyncError, SyncTimeout
from expo_ray.sync.gloo.buckets import BUCKETS_UNDER_WAY, Bucket, Message, ParamMeta, pack, plan_buckets
from expo_ray.sync.gloo.link import SENDER, SHORTEST_S, GlooLink, open_store

CAUSE_WAIT_S = 5.0
"""After a broken transfer: how long to wait for the worker's own error, which says more than the broken socket."""


class Client(Protocol):
    """Calls the workers: the part of vLLM's VLLMWeightSyncClient that a transfer needs, with a deadline."""

    deadline: Deadline
    """Shared by all calls and by what is transferred meanwhile."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, update_info: dict[str, Any]) -> None: ...
    def finish_weight_update(self) -> None: ...


class Source(Protocol):
    """The weights: the part of vLLM's WeightSource that a transfer needs. ZeroWeightSource is one."""

    def metadata(self) -> list[ParamMeta]: ...
    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]: ...


@dataclass
class _UnderWay:
    """A bucket that is being sent, with its tensors: Gloo reads their memory until the bucket has arrived."""

    index: int
    works: list[tuple[int, "torch.distributed.Work"]] = field(default_factory=list)
    payloads: list[torch.Tensor] = field(default_factory=list)


class GlooTransfer:
    """Rank 0 sends each bucket to every rollout rank; other learner ranks only take part in gathering.

    Args:
        client: calls the workers.
        source: the weights. Every learner rank must iterate it.
        rank: this learner rank.
        address: this machine's, for the workers to connect to.
        peers: `peers[i]` is the worker of rollout rank i + 1.
        bucket_bytes: bounds what is packed at once.
        timeout_s: bounds the sockets' own waits.

    Raises:
        SyncError, SyncTimeout: a worker did not connect; both name it.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        *,
        rank: int,
        address: str,
        peers: list[str],
        bucket_bytes: int,
        timeout_s: float,
    ) -> None:
        self.client, self.source, self.is_sender = client, source, rank == 0
        self._peers, self._bucket_bytes = peers, bucket_bytes
        self._links: list[GlooLink] = []
        if self.is_sender:
            self._connect(address, timeout_s)

    def _connect(self, address: str, timeout_s: float) -> None:
        deadline = self.client.deadline
        store = open_store(address, timeout_s)
        request = {  # engine.GlooWeightTransferInitInfo
            "master_address": address,
            "master_port": store.port,
            "rank_offset": 1,
            "bucket_bytes": self._bucket_bytes,
            "timeout_s": timeout_s,
        }
        with _call_during(self.client.init_weight_transfer_engine, request) as answer:
            for peer, name in enumerate(self._peers, start=1):
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
        metadata = self.source.metadata()
        pairs = checked(self.source, metadata)
        plan = plan_buckets(metadata, self._bucket_bytes)
        if not self.is_sender:
            _exhaust(pairs)
            return
        request = {  # engine.GlooWeightTransferUpdateInfo
            "names": [meta.name for meta in metadata],
            "dtype_names": [str(meta.dtype).removeprefix("torch.") for meta in metadata],
            "shapes": [list(meta.shape) for meta in metadata],
            "seconds": self.client.deadline.left,
        }
        try:
            self.client.start_weight_update()
            with _call_during(self.client.update_weights, request) as answer:
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
        _exhaust(pairs)  # the iteration checks at its end that no tensor is left

    def _post(self, sending: _UnderWay, message: Message, pairs: Iterator[torch.Tensor], tag: int) -> None:
        payload = pack(message, [next(pairs) for _ in message.slots])
        sending.payloads.append(payload)
        for peer, link in enumerate(self._links):
            try:
                sending.works.append((peer, link.send(payload, tag)))
            except RuntimeError as error:
                name = self._peers[peer]
                raise SyncError(f"rollout worker {name} is gone: {error}", (name,)) from error

    def _wait(self, sent: _UnderWay, buckets: int) -> None:
        deadline = self.client.deadline
        for peer, work in sent.works:
            try:
                work.wait(timedelta(seconds=max(SHORTEST_S, deadline.left)))
            except RuntimeError as error:
                name = self._peers[peer]
                where = f"bucket {sent.index + 1} of {buckets} (phase transfer)"
                if not deadline.left:
                    late = f"rollout worker {name} did not take {where} within {deadline.seconds:g} s"
                    raise SyncTimeout(late, (name,)) from error
                raise SyncError(f"rollout worker {name} broke off at {where}: {error}", (name,)) from error


def checked(source: Source, metadata: list[ParamMeta]) -> Iterator[torch.Tensor]:
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
