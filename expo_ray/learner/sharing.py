"""How a batch is dealt over ranks and cut into micro-batches. Pure arithmetic on lengths, the same on every rank.

The gradient does not depend on the outcome: each sample's weight already holds the batch-wide normaliser
(messages.TrainingSample.weight), so a cut only decides what is computed together.
"""

from collections.abc import Sequence

from expo_ray.balance import partition

Share = list[list[int]]
"""One rank's micro-batches, each a list of sample indices."""


def units(unit_of_sample: Sequence[int]) -> list[list[int]]:
    """Groups sample indices that must stay together; a unit of -1 stands alone."""
    together: dict[int, list[int]] = {}
    for index, unit in enumerate(unit_of_sample):
        together.setdefault(unit if unit >= 0 else -index - 1, []).append(index)
    return list(together.values())


def deal(
    lengths: Sequence[int], unit_of_sample: Sequence[int], ranks: int, token_budget: int, packed: bool
) -> list[Share]:
    """Cuts a batch into each rank's micro-batches.

    Units are shared out by tokens (expo_ray.balance), and then cut, sorted by length, where a micro-batch would
    pass `token_budget` tokens: real ones when packed, padded ones otherwise. A unit longer than the budget gets a
    micro-batch to itself.

    Args:
        lengths: [S] prompt plus completion tokens of each sample.
        unit_of_sample: [S] unit numbers, see messages.TrainingSample.unit.
        ranks: how many learner ranks share the batch.
        token_budget: learner.tokens_per_micro_batch.
        packed: whether a micro-batch is one packed row.

    Returns:
        [ranks] shares, all with the same number of micro-batches (collectives need that); short ranks get
        empty lists at the end.
    """
    together = units(unit_of_sample)
    held = partition([sum(lengths[i] for i in unit) for unit in together], ranks)
    shares = [_cut([together[u] for u in of_rank], lengths, token_budget, packed) for of_rank in held]
    rounds = max(len(share) for share in shares)
    return [share + [[] for _ in range(rounds - len(share))] for share in shares]


def shortest_unit(lengths: Sequence[int], unit_of_sample: Sequence[int]) -> list[int]:
    """The samples that a rank with nothing left computes: a whole unit, because a loss may need all of it."""
    return min(units(unit_of_sample), key=lambda unit: (sum(lengths[i] for i in unit), unit[0]))


def most_scored(shares: Sequence[Share], scored: Sequence[int], idle: Sequence[int]) -> list[int]:
    """For each round of micro-batches the largest number of scored tokens that a rank has in it.

    Args:
        shares: of all ranks.
        scored: [S] scored tokens of each sample.
        idle: the samples that a rank with nothing left computes.
    """
    rounds = zip(*shares, strict=True)
    return [max(sum(scored[i] for i in cut or idle) for cut in of_round) for of_round in rounds]


def _cut(units_of_rank: list[list[int]], lengths: Sequence[int], token_budget: int, packed: bool) -> Share:
    ordered = sorted(units_of_rank, key=lambda unit: (-max(lengths[i] for i in unit), unit[0]))
    share: Share = []
    for unit in ordered:
        if share and _cost(share[-1] + unit, lengths, packed) <= token_budget:
            share[-1].extend(unit)
        else:
            share.append(list(unit))
    return share


def _cost(samples: list[int], lengths: Sequence[int], packed: bool) -> int:
    if packed:
        return sum(lengths[i] for i in samples)
    return max(lengths[i] for i in samples) * len(samples)
