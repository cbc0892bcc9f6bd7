"""One training run from start to end: data, actors, loop, final evaluation, exported policy, summary."""

import itertools
import json
import os
import random
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from expo_ray.checkpoint.find import find_checkpoint
from expo_ray.checkpoint.identity import identify
from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.model_shape import model_shape
from expo_ray.config.schema import Config
from expo_ray.data.sources import load_problems
from expo_ray.data.stream import build_prompts, longest_sequence
from expo_ray.driver.events import Events
from expo_ray.driver.stopping import StopSignal
from expo_ray.driver.supervise import Job, supervise
from expo_ray.driver.warm import WarmActors
from expo_ray.messages import Problem, Prompt
from expo_ray.preflight.checks import check_context, preflight
from expo_ray.preflight.tokenizer import generation_ends
from expo_ray.prompts.builder import PromptBuilder
from expo_ray.reporting.trace import write_trace
from expo_ray.spans import open_spans


def run(config: Config, run_folder: Path, warm: WarmActors | None = None) -> None:
    """Trains as configured and leaves everything in the run folder (docs/run_folder.md).

    Args:
        config: the run's configuration.
        run_folder: its folder.
        warm: keeps the actors for the next run of a sweep; without it they end with the run.

    Raises:
        InputError: data, tokenizer or resume path that cannot be used, before any actor starts.
    """
    began = time.monotonic()
    events = Events(run_folder)
    open_spans(run_folder / "logs", "driver")
    preflight(config)
    tokenizer = load_tokenizer(config)
    builder = make_builder(tokenizer, config)
    training, heldout = load_prompts(config, builder)
    identity = identify(config.model.path, training)
    origin = find_checkpoint(config, run_folder, identity, partial(events.note, "skipped"))
    context = longest_sequence([*training, *heldout], config.rollout.max_completion_tokens)
    check_context(config, context)
    keeper = warm or WarmActors()
    actors = keeper.take(config, run_folder, context, stop_ids(tokenizer, config), events)
    try:
        with StopSignal() as stop:  # only now: starting Ray takes over the signals
            done = supervise(Job(config, run_folder, actors, builder, training, heldout, identity, stop, origin))
            stopped = stop.requested
    except BaseException:
        actors.close()
        raise
    finally:
        write_trace(run_folder)
    keeper.give_back(actors)
    if warm is None:
        keeper.close()
    _summarise(config, run_folder, done, stopped, time.monotonic() - began)


def _summarise(config: Config, folder: Path, done: int, stopped: bool, seconds: float) -> None:
    """Writes summary.json; a run that was stopped early says so and has no final evaluation."""
    records = folder / "evaluations.jsonl"
    found = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    by_step = {line.pop("steps_done"): line for line in found}
    summary = {
        "algorithm": config.algo.name,
        "steps_done": done,
        "steps_planned": config.trainer.steps,
        "finished": done == config.trainer.steps,
        "seconds": round(seconds, 1),
        "evaluation_before": by_step.get(0),
        "evaluation": None if stopped else by_step.get(done),
        "policy": str(folder / "checkpoints" / f"step_{done:06d}" / "policy"),
        "command": shlex.join(["python", "-m", *_command()]),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _command() -> list[str]:
    """The command line that made this run, as `python -m` takes it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name if spec else sys.argv[0], *sys.argv[1:]]


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
