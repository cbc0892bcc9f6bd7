"""A model is cut into buckets, and the same bytes come out at the other end."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expo_ray.sync.gloo.buckets import DIRECT_BYTES, pack, plan_buckets, unpack


@dataclass(frozen=True)
class Meta:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=30)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8])


@given(SHAPES, st.data(), st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_tensors_survive_the_wire(shapes, data, bucket_bytes):
    metadata = [Meta(f"t{i}", data.draw(DTYPES), shape) for i, shape in enumerate(shapes)]
    generator = torch.Generator().manual_seed(1)
    tensors = {m.name: (torch.rand(m.shape, generator=generator) * 200).to(m.dtype) for m in metadata}
    arrived = []
    for bucket in plan_buckets(metadata, bucket_bytes):
        wire = torch.full((bucket.nbytes,), 255, dtype=torch.uint8)
        for message in bucket.messages:
            payload = pack(message, [tensors[slot.meta.name] for slot in message.slots])
            assert payload.numel() == message.nbytes
            wire[message.offset : message.offset + message.nbytes] = payload
        arrived += unpack(bucket, wire)
    assert [name for name, _ in arrived] == [m.name for m in metadata]
    for (name, tensor), meta in zip(arrived, metadata, strict=True):
        assert tensor.dtype == meta.dtype and tuple(tensor.shape) == meta.shape
        assert torch.equal(tensor, tensors[name])


@given(SHAPES, st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_only_a_single_large_tensor_exceeds_the_bound(shapes, bucket_bytes):
    for bucket in plan_buckets([Meta(f"t{i}", torch.float32, s) for i, s in enumerate(shapes)], bucket_bytes):
        assert bucket.nbytes <= bucket_bytes or len(list(bucket.slots)) == 1


def test_large_tensors_are_sent_without_a_copy():
    side = int((DIRECT_BYTES // 4) ** 0.5)
    metadata = [Meta("a", torch.float32, (8,)), Meta("w", torch.float32, (side, side)), Meta("b", torch.float32, (8,))]
    (bucket,) = plan_buckets(metadata, 64 << 20)
    assert [[slot.meta.name for slot in message.slots] for message in bucket.messages] == [["a"], ["w"], ["b"]]
    weight = torch.rand(side, side)
    assert pack(bucket.messages[1], [weight]).data_ptr() == weight.data_ptr()


def test_a_transposed_tensor_is_sent_in_its_own_order():
    (bucket,) = plan_buckets([Meta("w", torch.float32, (3, 2))], 1000)
    transposed = torch.arange(6.0).reshape(2, 3).t()
    ((_, arrived),) = unpack(bucket, pack(bucket.messages[0], [transposed]))
    assert torch.equal(arrived, transposed)


def test_bucket_size_must_be_positive():
    with pytest.raises(ValueError, match="bucket_bytes"):
        plan_buckets([], 0)
