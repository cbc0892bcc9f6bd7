"""One training run from start to end: data, actors, loop, final evaluation, exported policy, summary."""

import json
import shlex
import sys
import time
from functools import partial
from pathlib import Path

from expo_ray.checkpoint.find import find_checkpoint
from expo_ray.checkpoint.identity import identify
from expo_ray.config.schema import Config
from expo_ray.data.stream import longest_sequence
from expo_ray.driver.events import Events
from expo_ray.driver.stopping import StopSignal
from expo_ray.driver.supervise import Job, supervise
from expo_ray.driver.warm import WarmActors
from expo_ray.preflight.checks import check_context, preflight
from expo_ray.prompts.loading import load_prompts, load_tokenizer, make_builder, stop_ids
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
