"""How a model's tensors are arranged in buckets on the wire. Both sides derive it from the same metadata."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

BUCKETS_UNDER_WAY = 2
"""How many buckets are on their way while another one is packed or loaded."""
ALIGNMENT = 64
"""Bytes. Every tensor starts on a cache line, so that a view of any dtype is aligned."""
DIRECT_BYTES = 1 << 20
"""Smaller tensors are copied together into one message; from this size on a tensor is sent without a copy."""


@dataclass(frozen=True, slots=True)
class ParamMeta:
    """Name, dtype on the wire and full shape of one tensor.

    vLLM has a class of the same name with the same fields, and its trainer engines read ours just as well. Importing
    theirs would cost every learner rank the import of vLLM, which takes seconds.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor's place in a bucket."""

    meta: ParamMeta
    offset: int
    """Bytes from the start of the bucket."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class Message:
    """Consecutive slots that travel as one Gloo message."""

    slots: tuple[Slot, ...]
    offset: int
    nbytes: int

    @property
    def direct(self) -> bool:
        """Whether it is one tensor, which is sent from its own memory."""
        return len(self.slots) == 1


@dataclass(frozen=True, slots=True)
class Bucket:
    """The tensors that are received and loaded together."""

    messages: tuple[Message, ...]
    nbytes: int

    @property
    def slots(self) -> Iterable[Slot]:
        return (slot for message in self.messages for slot in message.slots)


def plan_buckets(metadata: Sequence[ParamMeta], bucket_bytes: int) -> list[Bucket]:
    """Cuts `metadata`, in its order, into buckets of at most `bucket_bytes`.

    A larger tensor gets a bucket of its own, because the engine loads whole tensors. Raises ValueError if
    `bucket_bytes` is not positive.
    """
    if bucket_bytes <= 0:
        raise ValueError(f"bucket_bytes must be positive, not {bucket_bytes}")
    buckets: list[Bucket] = []
    slots: list[Slot] = []
    end = 0
    for meta in metadata:
        nbytes = tensor_bytes(meta)
        offset = _aligned(end)
        if slots and offset + nbytes > bucket_bytes:
            buckets.append(Bucket(_messages(slots), end))
            slots, offset = [], 0
        slots.append(Slot(meta, offset, nbytes))
        end = offset + nbytes
    if slots:
        buckets.append(Bucket(_messages(slots), end))
    return buckets


def tensor_bytes(meta: ParamMeta) -> int:
    """Bytes of the full tensor on the wire."""
    return meta.dtype.itemsize * torch.Size(meta.shape).numel()


def pack(message: Message, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Builds the message, [nbytes] uint8, from its tensors. A direct message is a view if possible."""
    if message.direct:
        return flat_bytes(tensors[0])
    packed = torch.empty(message.nbytes, dtype=torch.uint8)
    for slot, tensor in zip(message.slots, tensors, strict=True):
        start = slot.offset - message.offset
        packed[start : start + slot.nbytes].copy_(flat_bytes(tensor))
    return packed


def unpack(bucket: Bucket, received: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Splits a received bucket ([nbytes] uint8) into named views."""
    return [
        (
            slot.meta.name,
            received[slot.offset : slot.offset + slot.nbytes].view(slot.meta.dtype).view(slot.meta.shape),
        )
        for slot in bucket.slots
    ]


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """[nbytes] uint8 view of a tensor in host memory; a copy only if it is elsewhere or not contiguous."""
    return tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)


def _messages(slots: Sequence[Slot]) -> tuple[Message, ...]:
    groups: list[list[Slot]] = []
    for slot in slots:
        small = slot.nbytes < DIRECT_BYTES
        if small and groups and groups[-1][0].nbytes < DIRECT_BYTES:
            groups[-1].append(slot)
        else:
            groups.append([slot])
    return tuple(
        Message(tuple(group), group[0].offset, group[-1].offset + group[-1].nbytes - group[0].offset)
        for group in groups
    )


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
