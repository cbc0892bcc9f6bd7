"""Hand-made graded groups for the tests of the evaluation."""

import numpy as np

from expo_ray.messages import Completion, Group, Problem, Prompt, Rollout, Verdict


def prompt(uid: str, level: int | None = None, kind: str = "", answers: tuple[str, ...] = ("5",)) -> Prompt:
    ids = np.arange(1, 4, dtype=np.int32)
    return Prompt(Problem(uid, f"question of {uid}", answers, None, level, kind), free_ids=ids, conditioned_ids=ids)


def graded(asked: Prompt, verdicts: list[Verdict], lengths: list[int] | None = None, limit: int = 100) -> Group:
    """A group with the given verdicts; a completion as long as `limit` is cut off."""
    lengths = lengths or [4] * len(verdicts)
    completions = [
        Completion(
            token_ids=np.arange(length, dtype=np.int32),
            logprobs=np.full(length, -0.5, dtype=np.float32),
            text=f"text {index} of {asked.problem.uid}: ½ ",
            finish_reason="length" if length >= limit else "stop",
            weight_version=0,
        )
        for index, length in enumerate(lengths)
    ]
    return Group(Rollout(asked, completions, []), verdicts, [])


def right(answer: str = "5") -> Verdict:
    return Verdict("correct", answer, "exact", 0.1)


def wrong(answer: str) -> Verdict:
    return Verdict("wrong", answer, "exact", 0.1)
