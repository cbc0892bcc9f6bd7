"""The order of training prompts: a pure function of seed and step, so that a resume has nothing to get wrong."""

from collections.abc import Sequence

import numpy as np

from expo_ray.messages import Prompt

_ORDER, _SPARE = 1, 2


class PromptStream:
    """Deals `prompts_per_step` prompts a step: each epoch is a fresh permutation of all of them.

    Args:
        prompts: all training prompts.
        prompts_per_step: how many one step takes.
        seed: the run's seed.
    """

    def __init__(self, prompts: Sequence[Prompt], prompts_per_step: int, seed: int) -> None:
        self.all, self.prompts_per_step, self.seed = prompts, prompts_per_step, seed
        self._orders: dict[int, np.ndarray] = {}

    def prompts(self, step: int) -> list[Prompt]:
        """The prompts of one step."""
        first = step * self.prompts_per_step
        return [self._at(position) for position in range(first, first + self.prompts_per_step)]

    def spare(self, step: int, extra: int, count: int) -> list[Prompt]:
        """`count` further prompts for round `extra` of a step whose groups had no signal, none of the step's own."""
        taken = {prompt.problem.uid for prompt in self.prompts(step)}
        order = np.random.default_rng([self.seed, _SPARE, step, extra]).permutation(len(self.all))
        return [self.all[i] for i in order if self.all[i].problem.uid not in taken][:count]

    def _at(self, position: int) -> Prompt:
        epoch, index = divmod(position, len(self.all))
        if epoch not in self._orders:
            kept = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            kept[epoch] = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.all))
            self._orders = kept
        return self.all[self._orders[epoch][index]]
