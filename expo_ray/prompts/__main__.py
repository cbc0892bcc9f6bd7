"""`python -m expo_ray.prompts --preview [key=value ...]` prints a few problems' prompts as the model will see them.

It takes the overrides of expo_ray.train: model.path=FOLDER sets the tokenizer, data=NAME and data.path=FILE the
problems, verifier=NAME the form of answer, model.prompt_style the template. The default is the toy task.
"""

import argparse
import sys

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import InputError
from expo_ray.data.sources import Problems
from expo_ray.messages import Prompt
from expo_ray.prompts.builder import PromptBuilder
from expo_ray.prompts.loading import load_tokenizer, make_builder

TOY_TASK = ["model=toy", "data=toy", "verifier=toy"]


def main(arguments: list[str] | None = None) -> int:
    """Prints the preview. Returns 0, or 2 with one sentence on standard error for bad input."""
    options = _parser().parse_args(arguments)
    try:
        config = compose_config(options.overrides or TOY_TASK)
        problems = Problems(config.data, config.seed).training[: options.count]
        builder = make_builder(load_tokenizer(config), config)
    except (InputError, OSError, ValueError) as error:
        print(f"expo_ray.prompts: {error}", file=sys.stderr)
        return 2
    for prompt in builder(problems):
        print(_page(builder, prompt))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m expo_ray.prompts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preview", action="store_true", required=True, help="print prompts and their ids")
    parser.add_argument("--count", type=int, default=2, help="how many problems (default 2)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for python -m expo_ray.train")
    return parser


def _page(builder: PromptBuilder, prompt: Prompt) -> str:
    parts = [f"=== {prompt.problem.uid} ({builder.style} style)"]
    shown = {"free prompt": prompt.free_ids, "conditioned prompt": prompt.conditioned_ids, "gold": prompt.gold_ids}
    for name, ids in (shown | {"answer statement": prompt.answer_span}).items():
        if ids is not None:
            parts.append(f"--- {name}: {len(ids)} ids\n{builder.tokenizer.decode(ids.tolist())}\n{ids.tolist()}")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
