"""What is asked of the engines: sampling parameters, expected lengths, and requests balanced over engines."""

from collections.abc import Sequence
from pathlib import Path

from expo_ray.balance import partition
from expo_ray.config.schema import Config
from expo_ray.files import read_lines
from expo_ray.messages import Group, RolloutRequest, Sampling


def training_sampling(config: Config) -> Sampling:
    """How the completions to train on are sampled."""
    rollout = config.rollout
    return Sampling(rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_completion_tokens)


def evaluation_sampling(config: Config) -> Sampling:
    """How an evaluation's completions are sampled."""
    return Sampling(config.eval.temperature, config.eval.top_p, 0, config.rollout.max_completion_tokens)


class LengthBook:
    """Mean tokens of each problem's last completions and explanations.

    It is a function of batches.jsonl, so that a resumed run orders its requests, and so its random numbers, like an
    uninterrupted one.
    """

    def __init__(self) -> None:
        self._mean: dict[str, float] = {}

    @classmethod
    def of_run(cls, folder: Path) -> "LengthBook":
        """Builds the book from a run's finished steps."""
        book, path = cls(), folder / "batches.jsonl"
        for line in read_lines(path, ("uids", "completions", "explanations", "tokens")):
            for uid, free, explained, tokens in zip(
                line["uids"], line["completions"], line["explanations"], line["tokens"], strict=True
            ):
                book._note(uid, free + explained, tokens)
        return book

    def learn(self, groups: Sequence[Group]) -> None:
        """Adds a step's groups."""
        for group in groups:
            self._note(group.rollout.prompt.problem.uid, len(group.rollout.sampled), sampled_tokens(group))

    def expected(self, uid: str) -> float:
        """Expected tokens of a completion; for an unknown problem the mean over known ones, or 0 if there are none."""
        if not self._mean:
            return 0.0
        return self._mean.get(uid, sum(self._mean.values()) / len(self._mean))

    def _note(self, uid: str, sampled: int, tokens: int) -> None:
        if sampled:
            self._mean[uid] = tokens / sampled


def sampled_tokens(group: Group) -> int:
    """Counts the tokens of all completions and explanations of a group."""
    return sum(len(completion.token_ids) for completion in group.rollout.sampled)


def share_out(requests: Sequence[RolloutRequest], shares: int) -> list[list[int]]:
    """Balances requests over engines by expected tokens, and puts the longest completions first in each share.

    An engine starts requests in their order; a long completion that starts last would be decoded alone.

    Returns:
        For each share that is not empty, the indices of its requests.
    """
    work = [r.expected_tokens * (r.samples + r.explanations) + len(r.prompt.free_ids) for r in requests]
    longest_first = [sorted(of, key=lambda i: (-requests[i].expected_tokens, i)) for of in partition(work, shares)]
    return [indices for indices in longest_first if indices]
