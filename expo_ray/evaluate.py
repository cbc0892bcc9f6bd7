"""python -m expo_ray.evaluate [group=choice] [key=value]: pass@k of a model on held-out problems.

usage: python -m expo_ray.evaluate model.path=FOLDER data=math|math500|gsm8k|toy|jsonl [data.path=FILE] [eval.samples=N]

The keys are those of python -m expo_ray.train; learners are not started. data.path names the file to evaluate on.
Writes evaluation.json and samples.jsonl; the last line printed is the folder's path.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.config.schema import Config

DEFAULTS = ("run_name=evaluate",)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit code: 0; 1 for a run that failed; 2 for wrong input."""
    overrides = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(overrides):
        print(__doc__)
        return 0
    from expo_ray.command import end_in_a_sentence

    return end_in_a_sentence(lambda: _command(overrides))


def _command(overrides: list[str]) -> int:
    from expo_ray.config.compose import compose_config
    from expo_ray.config.hub import check_hub

    config = compose_config([*DEFAULTS, *overrides])
    folder = Path(config.run_dir)
    config.data.eval_path = config.data.eval_path or config.data.path
    check_hub(config)
    _evaluate(config, folder)
    print(folder)
    return 0


def _evaluate(config: "Config", folder: Path) -> None:
    from rich.console import Console

    from expo_ray.config.entry import prepare_folder
    from expo_ray.config.errors import DataError
    from expo_ray.data.stream import longest_sequence
    from expo_ray.driver.actors import Actors
    from expo_ray.driver.samples import sample_lines
    from expo_ray.driver.session import held_out_problems, load_tokenizer, make_builder, make_prompts, stop_ids
    from expo_ray.evaluation.evaluator import Evaluator
    from expo_ray.reporting.table import evaluation_table

    tokenizer = load_tokenizer(config)
    problems = held_out_problems(config)
    if not problems:
        raise DataError(f"data={config.data.name}: no problem to evaluate on; give data.path=FILE")
    prompts = make_prompts(problems, make_builder(tokenizer, config), config)
    prepare_folder(config, folder)
    context = longest_sequence(prompts, config.rollout.max_completion_tokens)
    actors = Actors(config, folder, context, stop_ids(tokenizer, config), with_learners=False)
    try:
        found = Evaluator(config, prompts, actors.rollouts, actors.verifiers).evaluate()
    finally:
        actors.close()
    config.logging.samples_per_step = len(found.groups)
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps(line, ensure_ascii=False) + "\n" for line in sample_lines(found.groups, None, config)
        )
    (folder / "evaluation.json").write_text(json.dumps(found.summary(), indent=2) + "\n")
    Console().print(evaluation_table(config.model.path, found.summary()))


if __name__ == "__main__":
    sys.exit(main())
