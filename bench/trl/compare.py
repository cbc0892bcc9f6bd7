"""The result of a case: samples/s, time to the same number of updates, and whether both sides did the same work."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MOST_DIFFERENCE = 0.10
"""If the mean lengths differ by more, the two sides did not do the same work."""


@dataclass(frozen=True)
class SideRun:
    """One run of one side. Moments are seconds since the epoch."""

    began: float
    """When its command started."""
    ends: tuple[float, ...]
    """The end of each update."""
    step_tokens: tuple[int, ...]
    """Tokens sampled in each step."""
    completions_per_step: int
    longest: int
    """Tokens of the longest completion; 0 if only the steps' sums are known."""

    @property
    def steady_seconds(self) -> float:
        """Returns the mean seconds per step after the first update.

        Raises:
            ValueError: there are fewer than two updates.
        """
        if len(self.ends) < 2:
            raise ValueError("a steady state needs at least two updates")
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)

    @property
    def total_seconds(self) -> float:
        """Returns the seconds from the command to the end of the last update."""
        return self.ends[-1] - self.began

    @property
    def start_seconds(self) -> float:
        """Returns the seconds from the command to the end of the first update."""
        return self.ends[0] - self.began

    @property
    def mean_tokens(self) -> float:
        """Returns the mean length of a completion."""
        return sum(self.step_tokens) / (len(self.step_tokens) * self.completions_per_step)


@dataclass(frozen=True)
class Verdict:
    """The result of a case."""

    ours_samples_per_s: float
    trl_samples_per_s: float
    ratios: tuple[float, ...]
    """Steady state, ours over TRL's, round by round."""
    total_ratio: float
    """Time to the same number of updates with start-up, TRL's over ours."""
    trl_total_s: float
    ours_total_s: float
    even_updates: float | None
    """Number of updates after which ours is ahead in total time: 0 for always, None for never."""
    refusals: tuple[str, ...]
    """Reasons why the comparison does not count; empty if it does."""

    @property
    def ratio(self) -> float:
        """Returns the median over the rounds."""
        return statistics.median(self.ratios)


def compare(ours: Sequence[SideRun], trl: Sequence[SideRun], tokens: int, exact: bool) -> Verdict:
    """Compares alternating rounds.

    Args:
        ours: our rounds.
        trl: TRL's rounds, as many.
        tokens: the case's limit on a completion's tokens.
        exact: whether every completion must reach it.
    """
    ours_s = statistics.median(run.completions_per_step / run.steady_seconds for run in ours)
    trl_s = statistics.median(run.completions_per_step / run.steady_seconds for run in trl)
    ours_total = statistics.median(run.total_seconds for run in ours)
    trl_total = statistics.median(run.total_seconds for run in trl)
    return Verdict(
        ours_samples_per_s=ours_s,
        trl_samples_per_s=trl_s,
        ratios=tuple(
            (a.completions_per_step / a.steady_seconds) / (b.completions_per_step / b.steady_seconds)
            for a, b in zip(ours, trl, strict=True)
        ),
        total_ratio=trl_total / ours_total,
        trl_total_s=trl_total,
        ours_total_s=ours_total,
        even_updates=_even(ours, trl),
        refusals=tuple(_refusals(ours, trl, tokens, exact)),
    )


def _even(ours: Sequence[SideRun], trl: Sequence[SideRun]) -> float | None:
    """Returns the number n of updates after which both took equally long: first + (n - 1) * step is the same."""
    later = statistics.median(r.start_seconds for r in ours) - statistics.median(r.start_seconds for r in trl)
    gain = statistics.median(r.steady_seconds for r in trl) - statistics.median(r.steady_seconds for r in ours)
    if later <= 0:
        return 0.0 if gain >= 0 else None
    return 1 + later / gain if gain > 0 else None


def _refusals(ours: Sequence[SideRun], trl: Sequence[SideRun], tokens: int, exact: bool) -> list[str]:
    found = []
    for index, (a, b) in enumerate(zip(ours, trl, strict=True), start=1):
        if len(a.ends) != len(b.ends) or a.completions_per_step != b.completions_per_step:
            found.append(
                f"round {index}: {len(a.ends)} updates of {a.completions_per_step} completions here, "
                f"{len(b.ends)} of {b.completions_per_step} there"
            )
        difference = abs(a.mean_tokens / b.mean_tokens - 1)
        if difference > MOST_DIFFERENCE:
            found.append(
                f"round {index}: completions of {a.mean_tokens:.1f} tokens here and {b.mean_tokens:.1f} there, "
                f"{difference:.0%} apart"
            )
        for side, run in (("ours", a), ("TRL", b)):
            if exact and set(run.step_tokens) != {tokens * run.completions_per_step}:
                found.append(f"round {index}: not every completion of {side} has exactly {tokens} tokens")
            if run.longest > tokens:
                found.append(f"round {index}: {side} sampled {run.longest} tokens, over the limit of {tokens}")
    return found
