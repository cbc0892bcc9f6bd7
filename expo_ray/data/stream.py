"""The order of training prompts: a function of seed, step and, with `data.resample`, of pass rates in batches.jsonl."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expo_ray.files import read_lines
from expo_ray.messages import Group, Prompt

_ORDER, _SPARE, _DRAW, _MIX = 1, 2, 4, 5
_GOLDEN = (5**0.5 - 1) / 2
FLOOR = 0.05
"""Least weight of a prompt that is drawn by its pass rate, so that every prompt comes back."""
MEMORY = 0.5
"""Share of a prompt's earlier rate in its new one."""
_KEPT = 32


class PromptStream:
    """Hands out `prompts_per_step` prompts per step.

    Each source gets its share of every step, by its problems' `weight`, rounded up or down. Without `resample`, an
    epoch of a source is a new permutation of its prompts. With it, a step's prompts are drawn without replacement,
    with a weight that depends on the prompt's pass rate r: 1 - r (failing) or 4 r (1 - r) (uncertain), at least
    `FLOOR`; 1 for a prompt whose rate is not known. Rates are those of the steps before the step less `lag`.

    Args:
        prompts: all training prompts.
        prompts_per_step: number of prompts that a step uses.
        seed: the run's seed.
        resample: none, failing or uncertain (`data.resample`).
        lag: number of steps that are sampled ahead (`trainer.async_steps`).
    """

    def __init__(
        self, prompts: Sequence[Prompt], prompts_per_step: int, seed: int, resample: str = "none", lag: int = 0
    ) -> None:
        self.all, self.prompts_per_step, self.seed = prompts, prompts_per_step, seed
        self.resample, self.lag = resample, max(1, lag)
        sources = list(dict.fromkeys(prompt.problem.source for prompt in prompts))
        self._members = [[i for i, prompt in enumerate(prompts) if prompt.problem.source == s] for s in sources]
        weights = np.array([prompts[members[0]].problem.weight for members in self._members])
        sums = np.cumsum(weights)  # np.sum rounds otherwise, and a last bound above 1 would be a prompt too many
        self._bounds: NDArray[np.float64] = np.concatenate([[0.0], sums / sums[-1]])
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._index = {prompt.problem.uid: i for i, prompt in enumerate(prompts)} if resample != "none" else {}
        known = [prompt.problem.pass_rate for prompt in prompts] if resample != "none" else []
        self._known = np.array([np.nan if rate is None else rate for rate in known])
        self._seen: dict[int, list[tuple[int, float]]] = {}
        self._chosen: dict[int, list[int]] = {}

    def prompts(self, step: int) -> list[Prompt]:
        """Returns the prompts of one step."""
        if step not in self._chosen:
            self._chosen = {s: chosen for s, chosen in self._chosen.items() if s > step - _KEPT}
            self._chosen[step] = self._choose(step)
        return [self.all[i] for i in self._chosen[step]]

    def spare(self, step: int, first: int, count: int) -> list[Prompt]:
        """Returns up to `count` prompts outside the step's own, to replace groups without signal.

        `first` is how many the step has drawn already: none is drawn twice in one step.
        """
        taken = {prompt.problem.uid for prompt in self.prompts(step)}
        order = np.random.default_rng([self.seed, _SPARE, step]).permutation(len(self.all))
        return [self.all[i] for i in order if self.all[i].problem.uid not in taken][first : first + count]

    def recall(self, folder: Path) -> None:
        """Takes the pass rates of a run's finished steps from its batches.jsonl."""
        if self.resample != "none":
            for line in read_lines(folder / "batches.jsonl", ("step", "uids", "pass_rates")):
                self._note(line["step"], line["uids"], line["pass_rates"])

    def learn(self, step: int, groups: Sequence[Group]) -> None:
        """Takes the pass rates of a step."""
        if self.resample != "none":
            self._note(step, [g.rollout.prompt.problem.uid for g in groups], [pass_rate(g) for g in groups])

    def _note(self, step: int, uids: Sequence[str], rates: Sequence[float | None]) -> None:
        pairs = [(self._index[uid], rate) for uid, rate in zip(uids, rates, strict=True) if uid in self._index]
        self._seen[step] = [(index, rate) for index, rate in pairs if rate is not None]

    def _rates(self, step: int) -> NDArray[np.float64]:
        """[prompts] each one's pass rate as it is known for `step`; NaN: not known."""
        rates = self._known.copy()
        for earlier in sorted(self._seen.copy()):
            for index, rate in self._seen[earlier] if earlier <= step - self.lag else ():
                old = rates[index]
                rates[index] = rate if np.isnan(old) else MEMORY * old + (1 - MEMORY) * rate
        return rates

    def _choose(self, step: int) -> list[int]:
        """Indices of a step's prompts."""
        counts = self._counts(np.array([step]))[0]
        if self.resample != "none":
            own = self._draw(step, counts)
        else:
            before = self._counts(np.arange(step)).sum(axis=0)
            own = [[self._at(s, int(before[s]) + turn) for turn in range(count)] for s, count in enumerate(counts)]
        if len(own) == 1:
            return own[0]
        # Mixed, because samples.jsonl shows the first prompts of a step: not always those of one source.
        whose = np.random.default_rng([self.seed, _MIX, step]).permutation(np.repeat(np.arange(len(own)), counts))
        each = [iter(of_source) for of_source in own]
        return [next(each[source]) for source in whose]

    def _counts(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """[steps, sources] how many prompts of each source the steps have: its share, rounded up or down.

        The fraction that is left over takes turns, because the steps are cut at points that move by the golden ratio.
        """
        points = np.mod(steps * _GOLDEN, 1.0)[:, None]
        return np.diff(np.ceil(self.prompts_per_step * self._bounds - points), axis=1).astype(np.int64)

    def _at(self, source: int, turn: int) -> int:
        """Index of a source's prompt in its `turn`, which runs through its epochs."""
        epoch, index = divmod(turn, len(self._members[source]))
        if (source, epoch) not in self._orders:
            kept = {(s, e): order for (s, e), order in self._orders.items() if s != source or e >= epoch - 1}
            seed = [self.seed, _ORDER, epoch, *([source] if source else [])]
            kept[source, epoch] = np.random.default_rng(seed).permutation(len(self._members[source]))
            self._orders = kept
        return self._members[source][self._orders[source, epoch][index]]

    def _draw(self, step: int, counts: NDArray[np.int64]) -> list[list[int]]:
        """Draws each source's prompts: the largest of log weight plus Gumbel noise, which is drawing one after the
        other without replacement (Efraimidis and Spirakis 2006)."""
        rates = self._rates(step)
        wanted = 1 - rates if self.resample == "failing" else 4 * rates * (1 - rates)
        weights = np.where(np.isnan(rates), 1.0, np.maximum(wanted, FLOOR))
        keys = np.log(weights) + np.random.default_rng([self.seed, _DRAW, step]).gumbel(size=len(self.all))
        found = []
        for members, count in zip(self._members, counts, strict=True):
            best = np.argsort(-keys[members], kind="stable")[:count]
            found.append([members[best[turn % len(best)]] for turn in range(count)])
        return found


def pass_rate(group: Group) -> float | None:
    """Share of right completions among those that the verifier decided on; None without one."""
    decided = [verdict.outcome for verdict in group.verdicts if verdict.outcome not in ("timeout", "error")]
    return decided.count("correct") / len(decided) if decided else None
