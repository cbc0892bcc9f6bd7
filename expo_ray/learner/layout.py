"""Tensors of one micro-batch: token rows for the model, and where each completion token is predicted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expo_ray.messages import IntArray


@dataclass
class Layout:
    """B rows of L tokens that hold S sequences with N scored tokens in all.

    Padding is on the right and attention is causal, so a scored token never sees a pad and no mask is
    needed. Packed rows restart `position_ids` at each sequence, from which transformers builds its
    block-diagonal mask (transformers.masking_utils.find_packed_sequence_indices).
    """

    input_ids: Tensor  # [B, L] int64
    position_ids: Tensor  # [B, L] int64
    rows: Tensor  # [N] row of the hidden state that predicts each scored token
    columns: Tensor  # [N] its column: one before the token
    targets: Tensor  # [N] the scored token ids
    sample_of_token: Tensor  # [N] index of the sequence in [0, S)

    def to(self, device: torch.device) -> "Layout":
        return Layout(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))


def lay_out(contexts: Sequence[IntArray], scored: Sequence[IntArray], packed: bool) -> Layout:
    """Lays S sequences out as padded rows, or as one packed row.

    Args:
        contexts: S arrays of at least one id each, not scored.
        scored: S arrays of ids that follow the contexts and are scored.
        packed: one row with block-diagonal attention instead of S padded rows.

    Raises:
        ValueError: if a context is empty (its first scored token would have nothing to be predicted from).
    """
    if any(len(context) == 0 for context in contexts):
        raise ValueError("a sequence to score has an empty context; it needs at least one token before the scored ones")
    sequences = [np.concatenate([context, ids]) for context, ids in zip(contexts, scored, strict=True)]
    lengths = np.array([len(sequence) for sequence in sequences])
    starts = np.array([len(context) for context in contexts])
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if packed else np.zeros(len(lengths), int)
    if packed:
        input_ids = np.concatenate(sequences)[None]
        position_ids = np.concatenate([np.arange(n) for n in lengths])[None]
    else:
        input_ids = np.zeros((len(sequences), lengths.max()), np.int64)
        for row, sequence in enumerate(sequences):
            input_ids[row, : len(sequence)] = sequence
        position_ids = np.broadcast_to(np.arange(lengths.max()), input_ids.shape)
    counts = lengths - starts
    sample_of_token = np.repeat(np.arange(len(sequences)), counts)
    before = np.concatenate([np.arange(s - 1, n - 1) for s, n in zip(starts, lengths, strict=True)])
    return Layout(
        input_ids=_tensor(input_ids),
        position_ids=_tensor(position_ids),
        rows=_tensor(np.zeros_like(sample_of_token) if packed else sample_of_token),
        columns=_tensor(before + offsets[sample_of_token]),
        targets=_tensor(np.concatenate(list(scored))),
        sample_of_token=_tensor(sample_of_token),
    )


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int64))
