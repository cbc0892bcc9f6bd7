"""Divides work so that the largest share is small."""

import heapq
from collections.abc import Sequence


def partition(work: Sequence[float], parts: int) -> list[list[int]]:
    """Partitions by the largest differencing method (Karmarkar and Karp 1982), for any number of parts.

    It merges partial solutions, the two most uneven first, the fullest part of one with the emptiest of the other.
    With many pieces it comes close to the optimum, and closer than giving each piece to the emptiest part in turn.

    Args:
        work: [N] the pieces' sizes.
        parts: number of shares.

    Returns:
        [parts] ascending indices of the pieces; a share may be empty. The same input gives the same shares.
    """
    heap: list[tuple[float, int, list[tuple[float, list[int]]]]] = []
    for index, size in enumerate(work):
        alone = [(size, [index]), *((0.0, []) for _ in range(parts - 1))]
        heap.append((-size, index, alone))
    heapq.heapify(heap)
    while len(heap) > 1:
        _, first, one = heapq.heappop(heap)
        _, second, other = heapq.heappop(heap)
        pairs = zip(one, reversed(other), strict=True)
        joined = sorted(((a + b, x + y) for (a, x), (b, y) in pairs), key=lambda part: (-part[0], part[1]))
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], min(first, second), joined))
    return [sorted(indices) for _, indices in heap[0][2]] if heap else [[] for _ in range(parts)]
