"""python -m expo_ray.evaluate [group=choice] [key=value]: pass@k and majority@k of a model on held-out problems."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from expo_ray.files import write_whole

if TYPE_CHECKING:
    from expo_ray.config.schema import Config
    from expo_ray.evaluation.evaluator import Evaluator
    from expo_ray.evaluation.samples import SampleFile
    from expo_ray.messages import Prompt
    from expo_ray.preflight.plan import Plan
    from expo_ray.prompts.builder import PromptBuilder

HELP = """\
usage: python -m expo_ray.evaluate model=NAME|FOLDER data=NAME|FILE [eval.samples=N] [key=value ...]

Samples completions of held-out problems and verifies them. Prints pass@k, majority@k, accuracy, truncation and
no-answer rates by level and kind, with 95 % bootstrap intervals (docs/evaluation.md).

  model=toy|NAME|FOLDER      or model.path=FOLDER, a Hugging Face folder or hub id
  data=math|math500|math_l5|gsm8k|toy|FILE     FILE: columns are found; with data=NAME data.path=FILE they are NAME's
  eval.samples=N             completions of each problem (4)
  eval.max_problems=N        at most N problems of a level; 0: all
  eval.temperature=T eval.top_p=P rollout.max_completion_tokens=N seed=N
  rollout.workers=N          engines that share the work
  eval.chunk=N               problems that are sampled at once and then written down; 0: as many as fill the engines
  run_dir=FOLDER             where the results go; after a stop, the same command with the same folder resumes

Writes samples.jsonl, evaluation.json and pass_rates.jsonl (for data.pass_rates). The last line printed is the folder.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0; 1: the run failed; 2: bad input; 130: it was stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    from expo_ray.command import end_in_a_sentence

    return end_in_a_sentence(lambda: _command(arguments))


def _command(arguments: list[str]) -> int:
    from expo_ray.config.compose import compose_config
    from expo_ray.config.errors import ConfigError
    from expo_ray.evaluation.settings import expand
    from expo_ray.preflight.disk import evaluation_disk_problems
    from expo_ray.preflight.inputs import check_hub, fetch_adapter
    from expo_ray.preflight.plan import plan_text
    from expo_ray.preflight.values import check_config

    config = compose_config(expand(arguments))
    data = config.data
    data.eval_path = data.eval_path or data.path
    if data.sources and not (data.eval_path or data.eval_sources):
        data.eval_sources = [{key: entry[key] for key in entry if key != "weight"} for entry in data.sources]
        data.sources = []
    if not config.dry_run:
        fetch_adapter(config)
    plan = check_config(config, training=False)
    if config.dry_run:
        print(plan_text(plan), end="")
        return 0
    check_hub(config)
    for problem in evaluation_disk_problems(config, plan.shape):
        raise ConfigError(problem)
    code = _evaluate(plan, Path(config.run_dir))
    print(config.run_dir)
    return code


def _evaluate(plan: "Plan", folder: Path) -> int:
    from rich.console import Console

    from expo_ray.config.model_path import adapter_base
    from expo_ray.evaluation.samples import SampleFile
    from expo_ray.evaluation.settings import CHUNK, settle, store, stored
    from expo_ray.preflight.inputs import with_merged_adapter
    from expo_ray.preflight.model_folder import generation_ends
    from expo_ray.preflight.plan import write_plan
    from expo_ray.prompts.loading import load_tokenizer, make_builder, stop_ids
    from expo_ray.reporting.terminal import evaluation_table
    from expo_ray.runtime.journal import owned

    model = plan.config.model.path
    if adapter_base(model):
        stored(folder, model)  # before the folder's merged model is replaced: it may be another command's
        with owned(folder):
            plan = with_merged_adapter(plan, folder)
    config = plan.config
    builder = make_builder(load_tokenizer(config), config)
    prompts = _prompts(plan, builder)
    ends = stop_ids(builder, generation_ends(config.model.path))
    settings = settle(config, folder, prompts, ends, model)
    with owned(folder):
        store(settings, folder)  # first: a folder with other files and no settings is taken for another command's
        write_plan(plan, folder)
        file = SampleFile(folder / "samples.jsonl", prompts, config.eval.samples, settings[CHUNK])
        done = file.finished()
        if done < len(file.chunks) and not _sample(plan, folder, ends, file, done):
            return 130
        evaluation = file.evaluation(config.verifier.name)
        summary = evaluation.summary()
        rates = "".join(json.dumps(line) + "\n" for line in file.pass_rates(evaluation))
        write_whole(folder / "pass_rates.jsonl", rates)
        write_whole(folder / "evaluation.json", json.dumps(summary, indent=2) + "\n")
        for name, of in summary["sets"].items():
            Console().print(evaluation_table(f"{model} on {name}", of))
        Console().print(evaluation_table(f"{model} on {_data_name(config)}", summary))
        return 0


def _prompts(plan: "Plan", builder: "PromptBuilder") -> list["Prompt"]:
    from expo_ray.config.errors import DataError
    from expo_ray.data.sources import Problems
    from expo_ray.prompts.loading import at_most_per_level, build_prompts, carried

    config = plan.config
    problems = at_most_per_level(Problems(config.data, config.seed, config.verifier).held_out, config.eval.max_problems)
    if not problems:
        raise DataError(
            f"{_data_name(config)}: no problem to evaluate on (data.eval_levels={config.data.eval_levels}); "
            "give another data=FILE, or data.eval_levels=[]"
        )
    if config.eval.max_problems:
        print(f"{len(problems)} problems (eval.max_problems={config.eval.max_problems} a level)", file=sys.stderr)
    problems = [carried(problem, config) for problem in problems]
    return build_prompts(problems, builder, config.rollout.max_prompt_tokens, plan.context)


def _data_name(config: "Config") -> str:
    data = config.data
    return "all sets" if data.eval_sources else data.eval_path or data.hub or data.name


def _sample(plan: "Plan", folder: Path, ends: tuple[int, ...], file: "SampleFile", done: int) -> bool:
    """Samples, grades and writes the remaining chunks; returns False if it was stopped before the end."""
    from expo_ray.driver.actors import Actors
    from expo_ray.evaluation.evaluator import Evaluator
    from expo_ray.prompts.loading import longest_sequence

    if done:
        print(f"resuming after chunk {done} of {len(file.chunks)}", file=sys.stderr)
    config = plan.config
    context = longest_sequence(file.prompts, config.rollout.max_completion_tokens)
    try:
        actors = Actors(plan, folder, context, ends)
        try:
            _grade_chunks(Evaluator(config, file.prompts, actors.rollouts, actors.verifiers), file, done)
        finally:
            actors.close()
    except KeyboardInterrupt:
        print(
            f"stopped after chunk {file.finished()} of {len(file.chunks)}; "
            f"the same command with run_dir={folder} resumes",
            file=sys.stderr,
        )
        return False
    return True


def _grade_chunks(evaluator: "Evaluator", file: "SampleFile", done: int) -> None:
    for index in range(done, len(file.chunks)):
        began = time.monotonic()
        file.append(evaluator.grade(file.chunks[index], index))
        if evaluator.config.logging.progress:
            asked, spent = sum(map(len, file.chunks[: index + 1])), time.monotonic() - began
            print(f"{asked} of {len(file.prompts)} problems, this chunk {spent:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
