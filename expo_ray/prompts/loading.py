"""Loads a run's tokenizer, prompts and stop tokens."""

import itertools
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.model_path import tokenizer_of
from expo_ray.config.schema import Config
from expo_ray.data.sources import Problems
from expo_ray.messages import Problem, Prompt
from expo_ray.prompts.builder import PromptBuilder
from expo_ray.rewards.functions import own_functions
from expo_ray.verifier.tasks import WITHOUT_META


def load_tokenizer(config: Config) -> Any:
    """Loads the policy's tokenizer.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # unset, tokenizers warns when Ray forks
    try:
        place = tokenizer_of(config.model.path)
        return AutoTokenizer.from_pretrained(place, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model.path={config.model.path}: its tokenizer cannot be loaded ({reason})") from error


def make_builder(tokenizer: Any, config: Config) -> PromptBuilder:
    """Makes the prompt builder; what is unusual about the chat template is shown on standard error.

    Raises:
        ConfigError: the prompt style or the tokenizer cannot be used.
    """
    try:
        model = config.model
        builder = PromptBuilder(tokenizer, model.prompt_style, config.verifier.name, model.chat_template_kwargs)
    except ValueError as error:
        raise ConfigError(f"model.path={config.model.path}: {error}") from error
    for finding in builder.findings:
        print(f"model.path={config.model.path}: {finding}", file=sys.stderr)
    return builder


def load_prompts(
    config: Config, builder: PromptBuilder, problems: Problems, context: int | None
) -> tuple[list[Prompt], list[Prompt]]:
    """Builds the training and held-out prompts.

    Args:
        config: the run's configuration.
        builder: makes the prompts.
        problems: the run's problems.
        context: the model's context in tokens; None if it is not known.

    Raises:
        DataError: there are no problems, or a prompt is too long.
    """
    if not problems.training:
        raise DataError(f"data.path={config.data.path}: no problem is left after data.levels={config.data.levels}")
    most = config.rollout.max_prompt_tokens
    held_out = at_most_per_level(problems.held_out, config.eval.max_problems)
    training, held_out = ([carried(problem, config) for problem in part] for part in (problems.training, held_out))
    return build_prompts(training, builder, most, context), build_prompts(held_out, builder, most, context)


def carried(problem: Problem, config: Config) -> Problem:
    """The problem, without the record's other columns if nobody reads them: it travels to the engines and back."""
    unread = (problem.task or config.verifier.name) in WITHOUT_META and not own_functions(config.reward)
    return replace(problem, meta={}) if unread and problem.meta else problem


def at_most_per_level(problems: list[Problem], limit: int) -> list[Problem]:
    """Returns at most `limit` problems of each level of each source (0: all), in their order.

    The choice is random, because files often begin with one subject, and the same in every run.
    """
    if not limit:
        return problems
    by_level: dict[tuple[str, int | None], list[int]] = {}
    for index, problem in enumerate(problems):
        by_level.setdefault((problem.source, problem.level), []).append(index)
    chance = random.Random(0)
    chosen = [chance.sample(of_level, min(limit, len(of_level))) for of_level in by_level.values()]
    return [problems[index] for index in sorted(itertools.chain(*chosen))]


def stop_ids(builder: PromptBuilder, generation_ends: Sequence[int]) -> tuple[int, ...]:
    """Token ids that end a completion: the tokenizer's, the chat template's, and generation_config.json's."""
    return tuple(sorted({int(builder.tokenizer.eos_token_id), builder.end_id, *generation_ends}))


def build_prompts(
    problems: Sequence[Problem], builder: PromptBuilder, max_prompt_tokens: int, context: int | None
) -> list[Prompt]:
    """Builds both prompts of every problem; problems over `max_prompt_tokens` are left out, with a warning.

    Args:
        problems: the problems.
        builder: makes the prompts.
        max_prompt_tokens: rollout.max_prompt_tokens.
        context: the model's context in tokens; None if it is not known.

    Raises:
        DataError: a prompt is longer than the model's context, or no prompt is short enough.
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
    """The context that an engine needs, in tokens: the longest prompt with the longest completion."""
    return max(map(_prompt_tokens, prompts)) + max_completion_tokens
