"""Sums and means over the tokens of each sample of a flat micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def segment_sum(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """[count] sum of `values` [N] over each segment id of `segment` [N]; 0 for a segment without tokens."""
    return values.new_zeros(count).index_add(0, segment, values)


def segment_mean(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """[count] mean of `values` [N] over each segment id of `segment` [N]; 0 for a segment without tokens."""
    lengths = segment_sum(values.new_ones(values.shape), segment, count)
    return segment_sum(values, segment, count) / lengths.clamp(min=1)
