"""The order of training prompts: a pure function of seed and step, so that a resume has nothing to get wrong."""

import sys
from collections.abc import Sequence

import numpy as np

from expo_ray.config.errors import DataError
from expo_ray.messages import Problem, Prompt
from expo_ray.prompts.builder import PromptBuilder

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


def build_prompts(
    problems: Sequence[Problem], builder: PromptBuilder, max_prompt_tokens: int, context: int | None
) -> list[Prompt]:
    """Both prompts of every problem, tokenised once; those over `max_prompt_tokens` are left out, with a warning.

    Args:
        problems: what to ask.
        builder: makes the prompts.
        max_prompt_tokens: rollout.max_prompt_tokens.
        context: the model's context in tokens; None where it is not known.

    Raises:
        DataError: a prompt is longer than the model's context, or none is short enough.
    """
    prompts = builder(problems)
    if not prompts:
        return []
    longest = max(prompts, key=_prompt_tokens)
    uid, tokens = longest.problem.uid, _prompt_tokens(longest)
    if context is not None and tokens > context:
        raise DataError(
            f"problem {uid} has a prompt of {tokens} tokens and the model's context is {context}: take it out of the "
            f"data, or use a model with a longer context"
        )
    short = [prompt for prompt in prompts if _prompt_tokens(prompt) <= max_prompt_tokens]
    if not short:
        raise DataError(
            f"rollout.max_prompt_tokens={max_prompt_tokens} leaves no problem: the longest prompt ({uid}) has "
            f"{tokens} tokens; use rollout.max_prompt_tokens={tokens}"
        )
    if len(short) < len(prompts):
        print(
            f"{len(prompts) - len(short)} of {len(prompts)} problems are left out: their prompts are longer than "
            f"rollout.max_prompt_tokens={max_prompt_tokens}",
            file=sys.stderr,
        )
    return short


def _prompt_tokens(prompt: Prompt) -> int:
    return max(len(prompt.free_ids), len(prompt.conditioned_ids))


def longest_sequence(prompts: Sequence[Prompt], max_completion_tokens: int) -> int:
    """Tokens of the longest prompt with the longest completion: the context that an engine needs."""
    return max(map(_prompt_tokens, prompts)) + max_completion_tokens
