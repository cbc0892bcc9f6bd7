"""The order of training prompts: a pure function of seed and step, so that a resumed run needs no state for it."""

from collections.abc import Sequence

import numpy as np

from expo_ray.messages import Prompt

_ORDER, _SPARE = 1, 2


class PromptStream:
    """Hands out `prompts_per_step` prompts per step. Each epoch is a new permutation of all prompts.

    Args:
        prompts: all training prompts.
        prompts_per_step: number of prompts that a step uses.
        seed: the run's seed.
    """

    def __init__(self, prompts: Sequence[Prompt], prompts_per_step: int, seed: int) -> None:
        self.all, self.prompts_per_step, self.seed = prompts, prompts_per_step, seed
        self._orders: dict[int, np.ndarray] = {}

    def prompts(self, step: int) -> list[Prompt]:
        """Returns the prompts of one step."""
        first = step * self.prompts_per_step
        return [self._at(position) for position in range(first, first + self.prompts_per_step)]

    def spare(self, step: int, first: int, count: int) -> list[Prompt]:
        """Returns up to `count` prompts outside the step's own, to replace groups without signal.

        `first` is how many the step has drawn already: none is drawn twice in one step.
        """
        taken = {prompt.problem.uid for prompt in self.prompts(step)}
        order = np.random.default_rng([self.seed, _SPARE, step]).permutation(len(self.all))
        return [self.all[i] for i in order if self.all[i].problem.uid not in taken][first : first + count]

    def _at(self, position: int) -> Prompt:
        epoch, index = divmod(position, len(self.all))
        if epoch not in self._orders:
            kept = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            kept[epoch] = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.all))
            self._orders = kept
        return self.all[self._orders[epoch][index]]
