"""Preference pairs: made from groups, stored by problem, written to and read from JSON Lines."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from expo_ray.config.errors import DataError
from expo_ray.files import write_whole
from expo_ray.messages import Group, Term, TrainingSample


@dataclass(frozen=True, slots=True)
class Pair:
    """A chosen and a rejected completion of one problem's free prompt, as ids and as texts."""

    uid: str
    step: int
    """The step whose policy sampled them."""
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_text: str
    rejected_text: str
    reference_chosen: float | None = None
    """Sum over the chosen completion of the reference's log-probabilities, nats; None until scored."""
    reference_rejected: float | None = None


def make_pairs(group: Group, chosen: list[tuple[list[int], str]], step: int) -> list[Pair]:
    """Makes one pair for each chosen (ids, text), taking the group's wrong completions in turn.

    Wrong means a verdict of wrong or no_answer, not timeout or error. Without a wrong completion there is no pair.
    """
    rollout = group.rollout
    wrong = [
        completion
        for completion, verdict in zip(rollout.completions, group.verdicts, strict=True)
        if verdict.outcome in ("wrong", "no_answer") and len(completion.token_ids)
    ]
    if not wrong:
        return []
    rejected = [wrong[i % len(wrong)] for i in range(len(chosen))]
    return [
        Pair(
            uid=rollout.prompt.problem.uid,
            step=step,
            prompt_ids=rollout.prompt.free_ids.tolist(),
            chosen_ids=ids,
            rejected_ids=loser.token_ids.tolist(),
            chosen_text=text,
            rejected_text=loser.text,
        )
        for (ids, text), loser in zip(chosen, rejected, strict=True)
    ]


def pair_samples(pairs: list[Pair]) -> list[TrainingSample]:
    """Returns two samples per pair; they share a unit, and each weighs 1 / pairs."""
    samples = []
    for unit, pair in enumerate(pairs):
        samples += [
            _sample(pair, pair.chosen_ids, "chosen", unit, 1.0 / len(pairs), pair.reference_chosen),
            _sample(pair, pair.rejected_ids, "rejected", unit, 1.0 / len(pairs), pair.reference_rejected),
        ]
    return samples


def _sample(
    pair: Pair, ids: list[int], term: Term, unit: int, weight: float, reference: float | None
) -> TrainingSample:
    return TrainingSample(
        prompt_ids=np.array(pair.prompt_ids, dtype=np.int32),
        completion_ids=np.array(ids, dtype=np.int32),
        term=term,
        weight=weight,
        unit=unit,
        reference_logprob=reference,
    )


class PairStore:
    """The pairs of each problem, by uid; `put` replaces a problem's pairs."""

    def __init__(self) -> None:
        self._pairs: dict[str, list[Pair]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._pairs.values()))

    def __contains__(self, uid: str) -> bool:
        """Whether the problem's pairs were made, even if there were none to make."""
        return uid in self._pairs

    def __iter__(self) -> Iterator[Pair]:
        for pairs in self._pairs.values():
            yield from pairs

    def put(self, uid: str, pairs: list[Pair]) -> None:
        self._pairs[uid] = pairs

    def get(self, uid: str) -> list[Pair]:
        return self._pairs.get(uid, [])

    @property
    def scored(self) -> bool:
        """Whether there are pairs and all have their reference sums; then no reference model is needed."""
        return len(self) > 0 and not any(p.reference_chosen is None or p.reference_rejected is None for p in self)

    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """Returns the (context ids, scored ids) whose log-probability sums `set_reference` takes, in this order."""
        return [(pair.prompt_ids, ids) for pair in self for ids in (pair.chosen_ids, pair.rejected_ids)]

    def set_reference(self, sums: list[float]) -> None:
        """Stores the reference's sums of `sequences()`. Raises ValueError if there are more or fewer of them."""
        if len(sums) != 2 * len(self):
            raise ValueError(f"{len(self)} pairs need {2 * len(self)} reference sums, got {len(sums)}")
        left = iter(sums)
        for uid, pairs in self._pairs.items():
            self._pairs[uid] = [
                replace(pair, reference_chosen=next(left), reference_rejected=next(left)) for pair in pairs
            ]

    def write(self, path: Path) -> None:
        """Writes one pair per line, with the fields of Pair as keys."""
        write_whole(path, "".join(json.dumps(asdict(pair)) + "\n" for pair in self))

    def read(self, path: Path) -> None:
        """Replaces the store's content by the pairs in a file.

        Raises:
            DataError: a line is not a pair, or the file has none; names file and line.
        """
        found = PairStore()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                pair = Pair(**json.loads(line))
            except (json.JSONDecodeError, TypeError) as error:
                raise DataError(f"{path}, line {number}: not a stored pair ({error})") from error
            found.put(pair.uid, [*found.get(pair.uid), pair])
        if not len(found):
            raise DataError(f"{path} holds no pairs")
        self._pairs = found._pairs

    def state_dict(self) -> dict[str, Any]:
        """Returns the store as a value that JSON can hold."""
        return {uid: [asdict(pair) for pair in pairs] for uid, pairs in self._pairs.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the store's content by a `state_dict()`."""
        self._pairs = {uid: [Pair(**pair) for pair in pairs] for uid, pairs in state.items()}
