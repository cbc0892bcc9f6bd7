"""The learner's end of a sync: one WeightSender in each rank."""

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import ray
import torch
from ray.actor import ActorHandle

from expo_ray.config.schema import Config
from expo_ray.runtime.waits import ActorFailed, Deadline, Waiter, WaitExpired
from expo_ray.sync import SyncError, SyncTimeout
from expo_ray.sync.gloo.buckets import tensor_bytes
from expo_ray.sync.gloo.trainer import GlooTransfer, Source


class BoundedWeightSyncClient:
    """vLLM's VLLMWeightSyncClient protocol over Ray actors (expo_ray.rollout.receiver) by name.

    vLLM's own Ray client sends every worker the same `rank_offset`, so several independent engines would all take the
    same ranks of the transfer group. This one gives each worker its own.

    Args:
        workers: actor name -> Ray handle.
        deadline: bounds all calls until another one is set.
        ranks_per_worker: tensor parallel size of the engines.
    """

    def __init__(self, workers: Mapping[str, ActorHandle], deadline: Deadline, ranks_per_worker: int = 1) -> None:
        self._workers = dict(workers)
        self._waiter = Waiter()
        self._ranks_per_worker = ranks_per_worker
        self.deadline = deadline
        """That of the present connect or send. The transport and the thread that runs it use the same one."""
        self.weight_version: int | None = None
        """The version that `finish_weight_update` gives the engines if its caller, vLLM's own code, passes none."""
        self.phase = ""
        """The present call, for messages; empty between calls."""
        self.waiting_for: list[str] = []
        """The workers that have not answered it. Another thread may have to report them."""
        self.seconds: dict[str, float] = {}
        """How long the calls of each phase of this round took, together."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Lets every worker join the transfer."""

        def request(index: int) -> tuple[Any, ...]:
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += index * self._ranks_per_worker
            return ({"init_info": info},)

        self._call("connect", "init_weight_transfer_engine", request)

    def start_weight_update(self) -> None:
        """Opens a round in every engine."""
        self._call("start", "start_weight_update", lambda _: ())

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Lets every engine receive; returns when all have loaded."""
        # Put once, so that the object store holds one copy, however many workers there are.
        request = ray.put({"update_info": update_info})
        self._call("update", "update_weights", lambda _: (request,))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Closes the round in every engine and sets its version."""
        if weight_version is None and self.weight_version is not None:
            weight_version = str(self.weight_version)
        self._call("finish", "finish_weight_update", lambda _: (weight_version,))

    def shutdown_weight_transfer_engine(self) -> None:
        """Lets every worker drop its connection."""
        self._call("close", "shutdown_weight_transfer_engine", lambda _: ())

    def _call(self, phase: str, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> None:
        """Calls every worker and waits for all. Raises SyncTimeout or SyncError, naming the worker and the phase."""
        began = time.monotonic()
        refs = {
            name: getattr(handle, method).remote(*arguments(index))
            for index, (name, handle) in enumerate(self._workers.items())
        }
        self.phase, self.waiting_for = phase, list(refs)
        try:
            for name, _ in self._waiter.arrivals(refs, phase, self.deadline):
                self.waiting_for.remove(name)
        except WaitExpired as error:
            raise SyncTimeout(self.late(self.deadline.seconds), tuple(error.actors)) from error
        except ActorFailed as error:
            cause = error.cause or error.__cause__
            reason = f"{type(cause).__name__}: {next(iter(str(cause).strip().splitlines()), '')}"
            sentence = f"rollout worker {error.actor} failed in phase {phase}: {reason}"
            raise SyncError(sentence, (error.actor,)) from error
        self.phase, self.waiting_for = "", []
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began

    def late(self, after_s: float) -> str:
        """One sentence that names the workers that are waited for, and the phase."""
        if not self.phase:
            return f"the learners did not finish gathering or sending within {after_s:g} s"
        who = f"rollout worker{'s' if len(self.waiting_for) > 1 else ''} {', '.join(self.waiting_for)}"
        return f"{who} did not finish phase {self.phase} within {after_s:g} s"


GRACE_S = 5.0
"""Added to the deadline for the thread that runs a transfer, so that a call in it can still report the late worker."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SendReport:
    """What one rank measured during a sync."""

    weight_version: int
    bytes_sent: int
    """Size of the model on the wire, counted once, however many workers received it."""
    seconds: float
    """Wall-clock seconds until every engine had loaded and finished (rank 0), or gathering ended (others)."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of the calls start, update (transfer and load) and finish; rank 0 only."""


def resolve_backend(config: Config) -> str:
    """Resolves `sync.backend=auto`: gloo on CPU, ipc if learner and engine share a GPU, otherwise nccl."""
    if config.sync.backend != "auto":
        return config.sync.backend
    if config.profile.device == "cpu":
        return "gloo"
    return "ipc" if config.cluster.placement == "colocated" else "nccl"


class Transfer(Protocol):
    """One rank's end of a connection: vLLM's trainer engine for NCCL and IPC, ours for Gloo."""

    def send_weights(self) -> None: ...
    def shutdown(self) -> None: ...


class WeightSender:
    """Sends a learner's weights to the rollout workers. Every method must be called on every rank."""

    def __init__(self, source: Source, *, rank: int, bucket_bytes: int, timeout_s: float) -> None:
        """`bucket_bytes` bounds what is packed at once; `timeout_s` bounds a whole connect and a whole send."""
        self._source = source
        self._rank = rank
        self._bucket_bytes = bucket_bytes
        self._timeout_s = timeout_s
        self._client: BoundedWeightSyncClient | None = None
        self._engine: Transfer | None = None

    def connect(self, workers: Mapping[str, ActorHandle], backend: str, ranks_per_worker: int = 1) -> None:
        """Connects to the workers (by name), in place of any earlier ones.

        `ranks_per_worker`: tensor parallel size of the engines. Raises SyncError or SyncTimeout.
        """
        self.close()  # first, so that workers that are still in an earlier transfer fail and become free
        client = BoundedWeightSyncClient(workers, Deadline(self._timeout_s), ranks_per_worker)
        peers = [name for name in workers for _ in range(ranks_per_worker)]
        self._engine = self._bounded(client, lambda: self._open(client, peers, backend))
        self._client = client

    def send(self, weight_version: int) -> SendReport:
        """Sends the learners' weights to every engine and sets their version to `weight_version`.

        Raises SyncError or, within the bound, SyncTimeout; both name worker and phase. After an error call `connect`
        again: engines that took part are not usable until the next send has succeeded.
        """
        client, engine = self._client, self._engine
        if client is None or engine is None:
            raise SyncError("weights cannot be sent before the rollout workers are connected")
        began = time.perf_counter()
        client.weight_version, client.seconds = weight_version, {}
        client.deadline = Deadline(self._timeout_s)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the transfer's thread reads the weights on other streams than the update's
        try:
            self._bounded(client, engine.send_weights)
        except BaseException:
            self.close()
            raise
        return SendReport(
            weight_version=weight_version,
            bytes_sent=sum(tensor_bytes(meta) for meta in self._source.metadata()),
            seconds=time.perf_counter() - began,
            phases=client.seconds,
        )

    def close(self) -> None:
        """Drops the connection. Safe to call twice."""
        if self._engine is not None:
            self._engine.shutdown()
        self._engine = self._client = None

    def _open(self, client: BoundedWeightSyncClient, peers: list[str], backend: str) -> Transfer:
        address = ray.util.get_node_ip_address()
        if backend == "gloo":
            return GlooTransfer(
                client,
                self._source,
                rank=self._rank,
                address=address,
                peers=peers,
                bucket_bytes=self._bucket_bytes,
                timeout_s=self._timeout_s,
            )
        # Imported only here: on a CPU no learner needs vLLM, whose import takes seconds.
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        info = self._init_info(address, peers, backend)
        engine: Transfer = WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)
        return engine

    def _init_info(self, address: str, peers: list[str], backend: str) -> Any:
        """What vLLM's trainer engine of a backend is made from."""
        if backend == "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            return NCCLTrainerInitInfo(
                master_address=address,
                master_port=_free_port(address),
                world_size=1 + len(peers),
                packed_buffer_size_bytes=self._bucket_bytes,
                # With two buffers vLLM packs on two streams in turn, and the second one reads tensors that the first is
                # still gathering.
                packed_num_buffers=1,
                rank=self._rank,
            )
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        # vLLM cannot send a tensor that is larger than its buffer.
        largest = max(tensor_bytes(meta) for meta in self._source.metadata())
        return IPCTrainerInitInfo(
            packed=True, packed_buffer_size_bytes=max(self._bucket_bytes, largest), rank=self._rank
        )

    def _bounded(self, client: BoundedWeightSyncClient, work: Callable[[], T]) -> T:
        """Runs `work` in a thread that can be abandoned: a stuck NCCL call or gather cannot be interrupted."""
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        outcome: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                if device is not None:
                    torch.cuda.set_device(device)
                outcome.append(work())
            except BaseException as error:  # raised by the caller below
                failure.append(error)

        # A daemon, since an abandoned one may never end and must not keep the process alive.
        thread = threading.Thread(target=run, name="weight-sync", daemon=True)
        thread.start()
        thread.join(client.deadline.left + GRACE_S)
        if failure:
            raise failure[0]
        if not outcome:
            raise SyncTimeout(client.late(client.deadline.seconds + GRACE_S), tuple(client.waiting_for))
        return outcome[0]


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
