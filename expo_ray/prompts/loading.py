"""A run's tokenizer, its prompts and its stop tokens, from the configuration."""

import itertools
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.schema import Config
from expo_ray.data.sources import load_problems
from expo_ray.messages import Problem, Prompt
from expo_ray.preflight.model_folder import generation_ends, model_shape
from expo_ray.prompts.builder import PromptBuilder


def load_tokenizer(config: Config) -> Any:
    """The policy's tokenizer.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # said out loud, else it warns when Ray's start forks
    try:
        return AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model.path={config.model.path}: its tokenizer cannot be loaded ({reason})") from error


def make_builder(tokenizer: Any, config: Config) -> PromptBuilder:
    """The prompt builder; an unusable style or tokenizer is the user's input error."""
    try:
        return PromptBuilder(tokenizer, config.model.prompt_style, config.verifier.name)
    except ValueError as error:
        raise ConfigError(f"model.path={config.model.path}: {error}") from error


def load_prompts(config: Config, builder: PromptBuilder) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts.

    Raises:
        DataError: no problems, or a prompt too long.
    """
    training = load_problems(config.data, held_out=False, seed=config.seed)
    heldout = held_out_problems(config)
    if not training:
        raise DataError(f"data.path={config.data.path}: no problem is left after data.levels={config.data.levels}")
    return make_prompts(training, builder, config), make_prompts(heldout, builder, config)


def make_prompts(problems: list[Problem], builder: PromptBuilder, config: Config) -> list[Prompt]:
    """The problems' prompts, within the limits of configuration and model."""
    shape = model_shape(config.model.path)
    return build_prompts(problems, builder, config.rollout.max_prompt_tokens, shape.context if shape else None)


def held_out_problems(config: Config) -> list[Problem]:
    """The held-out problems, at most `eval.max_problems` of a level (0: all), in their order.

    The choice is the same in every run: files often begin with one subject.
    """
    problems = load_problems(config.data, held_out=True, seed=config.seed)
    limit = config.eval.max_problems
    if not limit:
        return problems
    by_level: dict[int | None, list[int]] = {}
    for index, problem in enumerate(problems):
        by_level.setdefault(problem.level, []).append(index)
    chance = random.Random(0)
    chosen = [chance.sample(of_level, min(limit, len(of_level))) for of_level in by_level.values()]
    return [problems[index] for index in sorted(itertools.chain(*chosen))]


def stop_ids(tokenizer: Any, config: Config) -> tuple[int, ...]:
    """Token ids that end a completion: the tokenizer's, and those of the model's generation settings."""
    return tuple(sorted({int(tokenizer.eos_token_id), *generation_ends(Path(config.model.path))}))


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
