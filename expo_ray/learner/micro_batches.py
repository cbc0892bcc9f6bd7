"""Cuts a batch into micro-batches, and lays each out as token rows with the place that predicts each scored token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from expo_ray.balance import partition
from expo_ray.messages import IntArray

Share = list[list[int]]
"""One rank's micro-batches, each a list of sample indices."""
Shared = Sequence[tuple[int, int]]
"""For each sample, the number of its prompt and the prompt's tokens."""
PROMPTS_A_RANK = 4
"""Fewer prompts than this for each rank are not kept together."""
Entropy = Literal["none", "value", "gradient"]
"""Whether a micro-batch's entropies are computed, and whether with a gradient (entropy bonus)."""


def units(unit_of_sample: Sequence[int]) -> list[list[int]]:
    """Groups sample indices that must stay together; each sample of unit -1 is a group of its own."""
    together: dict[int, list[int]] = {}
    for index, unit in enumerate(unit_of_sample):
        together.setdefault(unit if unit >= 0 else -index - 1, []).append(index)
    return list(together.values())


def deal(
    lengths: Sequence[int],
    unit_of_sample: Sequence[int],
    ranks: int,
    token_budget: int,
    packed: bool,
    shared: Shared | None = None,
) -> list[Share]:
    """Cuts a batch into each rank's micro-batches.

    Units are balanced over ranks by tokens (expo_ray.balance). Each rank's units are sorted by length and fill
    micro-batches of at most `token_budget` tokens: real ones when packed, padded ones otherwise. A unit longer than
    the budget gets a micro-batch to itself.

    Args:
        lengths: [S] prompt plus completion tokens of each sample.
        unit_of_sample: [S] unit numbers, see messages.TrainingSample.unit.
        ranks: how many learner ranks share the batch.
        token_budget: learner.tokens_per_micro_batch.
        packed: whether a micro-batch is one packed row.
        shared: [S] prompts that a row computes once. A prompt's samples then go to one rank, unless there are so few
            prompts that the ranks would get unequal shares, and next to each other into micro-batches.

    Returns:
        [ranks] shares, all with the same number of micro-batches, because every micro-batch is a collective call;
        ranks with fewer get empty lists at the end.
    """
    together = units(unit_of_sample)
    kept = [[unit] for unit in together]
    if shared is not None:
        of_prompt: dict[int, list[list[int]]] = {}
        for unit in together:
            of_prompt.setdefault(shared[unit[0]][0], []).append(unit)
        if len(of_prompt) >= PROMPTS_A_RANK * ranks:
            kept = list(of_prompt.values())
    held = partition([_cost([i for unit in of for i in unit], lengths, True, shared) for of in kept], ranks)
    shares = [
        _cut([unit for k in of_rank for unit in kept[k]], lengths, token_budget, packed, shared) for of_rank in held
    ]
    rounds = max(len(share) for share in shares)
    return [share + [[] for _ in range(rounds - len(share))] for share in shares]


def shortest_unit(lengths: Sequence[int], unit_of_sample: Sequence[int]) -> list[int]:
    """The samples that a rank with nothing left computes with weight 0: a whole unit, because a loss may need it."""
    return min(units(unit_of_sample), key=lambda unit: (sum(lengths[i] for i in unit), unit[0]))


def most_scored(shares: Sequence[Share], scored: Sequence[int], idle: Sequence[int]) -> list[int]:
    """For each round of micro-batches, the largest number of scored tokens that any rank has in it.

    Args:
        shares: those of all ranks.
        scored: [S] scored tokens of each sample.
        idle: the samples that a rank with nothing left computes.
    """
    rounds = zip(*shares, strict=True)
    return [max(sum(scored[i] for i in cut or idle) for cut in of_round) for of_round in rounds]


def _cut(
    units_of_rank: list[list[int]], lengths: Sequence[int], token_budget: int, packed: bool, shared: Shared | None
) -> Share:
    ordered = sorted(units_of_rank, key=lambda unit: (-max(lengths[i] for i in unit), unit[0]))
    if shared is not None:
        ordered.sort(key=lambda unit: shared[unit[0]][0])
    share: Share = []
    for unit in ordered:
        if share and _cost(share[-1] + unit, lengths, packed, shared) <= token_budget:
            share[-1].extend(unit)
        else:
            share.append(list(unit))
    return share


def _cost(samples: list[int], lengths: Sequence[int], packed: bool, shared: Shared | None) -> int:
    if not packed:
        return max(lengths[i] for i in samples) * len(samples)
    tokens = sum(lengths[i] for i in samples)
    if shared is None:
        return tokens
    return tokens - sum(shared[i][1] for i in samples) + sum(dict(shared[i] for i in samples).values())


@dataclass
class Layout:
    """B rows of L tokens that hold S sequences with N scored tokens in total.

    Padding is on the right and attention is causal, so a scored token never sees a pad and no mask is
    needed. A packed row restarts `position_ids` at each sequence and says in `starts` where the sequences begin.
    A variable-length attention reads the latter; for the others transformers builds a mask from the former.
    A row that shares prompts holds each prompt once, as a sequence of its own, and `keys` says what each sequence sees:
    its prompt and itself.
    """

    input_ids: Tensor  # [B, L] int64
    position_ids: Tensor  # [B, L] int64
    rows: Tensor  # [N] row of the hidden state that predicts each scored token
    columns: Tensor  # [N] its column: one before the token
    targets: Tensor  # [N] the scored token ids, or [N, 1 + k] with further ids to score in each one's place
    sample_of_token: Tensor  # [N] index of the sequence in [0, S)
    starts: Tensor | None = None  # [S + 1] int32: where each sequence of a packed row begins, and the row's length
    longest: int = 0  # tokens of the longest sequence of a packed row
    keys: Tensor | None = None  # [K] int64: columns whose keys and values the sequences see, in their order
    key_starts: Tensor | None = None  # [sequences + 1] int32: where those of each sequence begin in `keys`
    longest_keys: int = 0  # the most that a sequence sees

    def to(self, device: torch.device) -> "Layout":
        held = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved = {n: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for n, v in held.items()}
        return Layout(**moved)


def lay_out(contexts: Sequence[IntArray], scored: Sequence[IntArray], packed: bool, share: bool = False) -> Layout:
    """Lays S sequences out as padded rows, or as one packed row.

    Args:
        contexts: S arrays of at least one id each, not scored.
        scored: S arrays of ids that follow the contexts and are scored.
        packed: one row with block-diagonal attention instead of S padded rows.
        share: packed only: equal contexts are laid out once.

    Raises:
        ValueError: a context is empty, so its first scored token has no hidden state that predicts it.
    """
    if any(len(context) == 0 for context in contexts):
        raise ValueError("a sequence to score has an empty context; it needs at least one token before the scored ones")
    if packed and share:
        return _lay_out_shared(contexts, scored)
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
    sample_of_token = np.repeat(np.arange(len(sequences)), lengths - starts)
    before = np.concatenate([np.arange(s - 1, n - 1) for s, n in zip(starts, lengths, strict=True)])
    return Layout(
        input_ids=_tensor(input_ids),
        position_ids=_tensor(position_ids),
        rows=_tensor(np.zeros_like(sample_of_token) if packed else sample_of_token),
        columns=_tensor(before + offsets[sample_of_token]),
        targets=_tensor(np.concatenate(list(scored))),
        sample_of_token=_tensor(sample_of_token),
        starts=_starts(lengths) if packed else None,
        longest=int(lengths.max()) if packed else 0,
    )


def _lay_out_shared(contexts: Sequence[IntArray], scored: Sequence[IntArray]) -> Layout:
    """One row of contexts, each once, and of the sequences that follow them."""
    ids: list[IntArray] = []
    seen: list[np.ndarray] = []  # the columns that each sequence of the row sees
    columns: list[np.ndarray] = []
    place: dict[bytes, np.ndarray] = {}
    end = 0
    for context, following in zip(contexts, scored, strict=True):
        if (known := context.tobytes()) not in place:
            place[known] = np.arange(end, end + len(context))
            ids.append(context)
            seen.append(place[known])
            end += len(context)
        own = np.arange(end, end + len(following))
        ids.append(following)
        seen.append(np.concatenate([place[known], own]))
        columns.append(np.concatenate([place[known][-1:], own[:-1]]))
        end += len(following)
    sees = [len(found) for found in seen]
    lengths = [len(part) for part in ids]
    sample_of_token = np.repeat(np.arange(len(scored)), [len(following) for following in scored])
    return Layout(
        input_ids=_tensor(np.concatenate(ids)[None]),
        position_ids=_tensor(np.concatenate([np.arange(s - n, s) for s, n in zip(sees, lengths, strict=True)])[None]),
        rows=_tensor(np.zeros_like(sample_of_token)),
        columns=_tensor(np.concatenate(columns)),
        targets=_tensor(np.concatenate(list(scored))),
        sample_of_token=_tensor(sample_of_token),
        starts=_starts(lengths),
        longest=max(lengths),
        keys=_tensor(np.concatenate(seen)),
        key_starts=_starts(sees),
        longest_keys=max(sees),
    )


def _starts(lengths: Sequence[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.int64))
