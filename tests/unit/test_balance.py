"""The partition against brute force, and against the greedy rule that it is to beat."""

from itertools import product

import numpy as np
import pytest

from expo_ray.balance import partition


def fullest(work, shares) -> float:
    return max(sum(work[i] for i in share) for share in shares)


def best(work, parts: int) -> float:
    return min(
        max(sum(w for w, place in zip(work, places, strict=True) if place == part) for part in range(parts))
        for places in product(range(parts), repeat=len(work))
    )


def greedy(work, parts: int) -> list[list[int]]:
    shares: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(work)), key=lambda i: -work[i]):
        min(shares, key=lambda share: sum(work[i] for i in share)).append(index)
    return shares


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_every_piece_is_in_one_share(parts):
    work = np.random.default_rng(parts).integers(1, 900, 41).tolist()
    shares = partition(work, parts)
    assert len(shares) == parts
    assert sorted(i for share in shares for i in share) == list(range(41))
    assert shares == partition(work, parts)


def test_the_textbook_case():
    """Karmarkar and Karp's own: 8 7 6 5 4 in two parts differ by 2 by their method, by 0 at best."""
    work = [8, 7, 6, 5, 4]
    assert fullest(work, partition(work, 2)) == 16
    assert best(work, 2) == 15


@pytest.mark.parametrize("parts", [2, 3])
def test_it_is_near_the_best_there_is(parts):
    draw = np.random.default_rng(7)
    ratios = []
    for _ in range(25):
        work = draw.integers(1, 1000, 9).tolist()
        ratios.append(fullest(work, partition(work, parts)) / best(work, parts))
    assert max(ratios) <= 4 / 3
    assert np.mean(ratios) < 1.03


@pytest.mark.parametrize("parts", [4, 8])
def test_it_beats_the_greedy_rule_on_lengths_as_they_come(parts):
    draw = np.random.default_rng(3)
    ours, theirs = [], []
    for _ in range(40):
        work = np.clip(draw.lognormal(5.5, 0.8, 12 * parts), 8, 2048).tolist()
        even = sum(work) / parts
        ours.append(fullest(work, partition(work, parts)) / even)
        theirs.append(fullest(work, greedy(work, parts)) / even)
    assert np.mean(ours) < np.mean(theirs)


def test_fewer_pieces_than_parts():
    assert sorted(map(len, partition([5, 3], 4))) == [0, 0, 1, 1]
    assert partition([], 2) == [[], []]
