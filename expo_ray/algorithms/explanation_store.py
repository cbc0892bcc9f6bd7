"""Kept self-explanations by problem, for refresh periods longer than a step."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from expo_ray.messages import IntArray


@dataclass(frozen=True, slots=True)
class KeptExplanation:
    """One explanation that passed the filters and the choice among its siblings."""

    token_ids: IntArray
    """[T] as sampled, stop token included."""
    text: str
    step: int
    """The step it was sampled at."""


class ExplanationStore:
    """The kept explanations of each problem, by its uid. The last `put` of a problem replaces what it had."""

    def __init__(self) -> None:
        self._kept: dict[str, list[KeptExplanation]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, uid: str) -> bool:
        """Whether explanations of the problem were sampled; it may have kept none of them."""
        return uid in self._kept

    def put(self, uid: str, explanations: list[KeptExplanation]) -> None:
        """Replaces what the problem had; an empty list says that nothing of it was kept."""
        self._kept[uid] = explanations

    def get(self, uid: str) -> list[KeptExplanation]:
        """The problem's kept explanations; empty where it has none."""
        return self._kept.get(uid, [])

    def state_dict(self) -> dict[str, Any]:
        """A value that JSON can hold."""
        return {
            uid: [{"token_ids": e.token_ids.tolist(), "text": e.text, "step": e.step} for e in kept]
            for uid, kept in self._kept.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces all with a `state_dict()`. Raises KeyError where an entry lacks a field."""
        self._kept = {
            uid: [KeptExplanation(np.array(e["token_ids"], dtype=np.int32), e["text"], e["step"]) for e in kept]
            for uid, kept in state.items()
        }
