"""How long a problem's completions will be, judged by those it had before: long ones are sampled first."""

from collections.abc import Sequence
from pathlib import Path

from expo_ray.balance import partition
from expo_ray.config.schema import Config
from expo_ray.files import read_lines
from expo_ray.messages import Group, RolloutRequest, Sampling


def training_sampling(config: Config) -> Sampling:
    """The distribution of the rollouts that are trained on."""
    rollout = config.rollout
    return Sampling(rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_completion_tokens)


def evaluation_sampling(config: Config) -> Sampling:
    """The distribution of an evaluation's completions."""
    return Sampling(config.eval.temperature, config.eval.top_p, 0, config.rollout.max_completion_tokens)


class LengthBook:
    """Mean tokens of a problem's last completions and explanations. It is a function of batches.jsonl, so that a
    resumed run orders its requests, and with them its random numbers, as an undisturbed one."""

    def __init__(self) -> None:
        self._mean: dict[str, float] = {}

    @classmethod
    def of_run(cls, folder: Path) -> "LengthBook":
        """What a run's finished steps have shown; empty where there is none."""
        book, path = cls(), folder / "batches.jsonl"
        for line in read_lines(path, ("uids", "completions", "explanations", "tokens")):
            for uid, free, explained, tokens in zip(
                line["uids"], line["completions"], line["explanations"], line["tokens"], strict=True
            ):
                book._note(uid, free + explained, tokens)
        return book

    def learn(self, groups: Sequence[Group]) -> None:
        """Takes in a step's groups."""
        for group in groups:
            self._note(group.rollout.prompt.problem.uid, len(group.rollout.sampled), sampled_tokens(group))

    def expected(self, uid: str) -> float:
        """Tokens of a completion; the mean over all known problems for one that is not known, 0 for the first."""
        if not self._mean:
            return 0.0
        return self._mean.get(uid, sum(self._mean.values()) / len(self._mean))

    def _note(self, uid: str, sampled: int, tokens: int) -> None:
        if sampled:
            self._mean[uid] = tokens / sampled


def sampled_tokens(group: Group) -> int:
    """Tokens of all completions and explanations of a group."""
    return sum(len(completion.token_ids) for completion in group.rollout.sampled)


def share_out(requests: Sequence[RolloutRequest], shares: int) -> list[list[int]]:
    """Balances requests over engines by expected tokens, in each the longest completions first.

    An engine takes up requests in their order; a long completion that is begun last would be decoded alone.

    Returns:
        For each share that gets any: indices of its requests.
    """
    work = [r.expected_tokens * (r.samples + r.explanations) + len(r.prompt.free_ids) for r in requests]
    longest_first = [sorted(of, key=lambda i: (-requests[i].expected_tokens, i)) for of in partition(work, shares)]
    return [indices for indices in longest_first if indices]
