"""Whether the longest problem fits the model's context, told before anything heavy is imported."""

from collections.abc import Sequence
from pathlib import Path

from expo_ray.config.errors import DataError
from expo_ray.config.model_shape import model_shape
from expo_ray.config.schema import Config
from expo_ray.messages import Problem


def check_longest(problems: Sequence[Problem], config: Config) -> None:
    """Tokenises the question with the most characters, where that can be too long at all.

    A question is the largest part of its prompt; the prompts themselves are checked once they are built
    (expo_ray.data.stream).

    Raises:
        DataError: the question alone is longer than the model's context.
    """
    file = Path(config.model.path) / "tokenizer.json"
    shape = model_shape(config.model.path)
    if shape is None or not problems or not file.is_file():
        return
    longest = max(problems, key=lambda problem: len(problem.question))
    if len(longest.question) <= shape.context:
        return
    from tokenizers import Tokenizer

    tokens = len(Tokenizer.from_file(str(file)).encode(longest.question).ids)
    if tokens > shape.context:
        raise DataError(
            f"data.path={config.data.path}: problem {longest.uid} has a prompt of at least {tokens} tokens and the "
            f"context of {config.model.path} is {shape.context}: take it out of the data, or use a model with a "
            f"longer context"
        )
