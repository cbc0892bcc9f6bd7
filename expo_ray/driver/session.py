"""One training run from start to end: data, actors, loop, final evaluation, exported policy, summary."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from expo_ray.algorithms.base import make_algorithm
from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.model_shape import model_shape
from expo_ray.config.schema import Config
from expo_ray.data.sources import load_problems
from expo_ray.data.stream import PromptStream, build_prompts, longest_sequence
from expo_ray.driver.actors import Actors
from expo_ray.driver.checkpoints import Checkpoints, restore
from expo_ray.driver.collect import Collector
from expo_ray.driver.loop import Run, train
from expo_ray.driver.measure import Measurer
from expo_ray.driver.record import Recorder
from expo_ray.driver.resume import find_checkpoint, take_over_records
from expo_ray.driver.stopping import StopSignal
from expo_ray.driver.trackers import make_trackers
from expo_ray.driver.weights import WeightSync
from expo_ray.evaluation.evaluator import Evaluation, Evaluator
from expo_ray.messages import Problem, Prompt
from expo_ray.prompts.builder import PromptBuilder


def run(config: Config, run_folder: Path) -> None:
    """Trains as configured and leaves everything in the run folder (docs/run_folder.md).

    Raises:
        InputError: data, tokenizer or resume path that cannot be used, before any actor starts.
    """
    tokenizer = load_tokenizer(config)
    builder = make_builder(tokenizer, config)
    training, heldout = load_prompts(config, builder)
    checkpoint = find_checkpoint(config, run_folder)
    context = longest_sequence([*training, *heldout], config.rollout.max_completion_tokens)
    actors = Actors(config, run_folder, context, stop_ids(tokenizer, config))
    try:
        with StopSignal() as stop:  # only now: starting Ray takes over the signals
            _train_and_summarise(config, run_folder, actors, builder, training, heldout, checkpoint, stop)
    finally:
        actors.close()


def _train_and_summarise(
    config: Config,
    folder: Path,
    actors: Actors,
    builder: PromptBuilder,
    training: list[Prompt],
    heldout: list[Prompt],
    checkpoint: Path | None,
    stop: StopSignal,
) -> None:
    began = time.monotonic()
    algorithm = make_algorithm(config)
    first_step = 0
    if checkpoint is not None:
        first_step = restore(checkpoint, actors.learners, algorithm)
        take_over_records(checkpoint, folder, first_step)
        print(f"resuming after step {first_step} from {checkpoint}", file=sys.stderr)
    settings: Any = OmegaConf.to_container(OmegaConf.structured(config))
    recorder = Recorder(config, folder, make_trackers(config, folder, first_step, settings))
    measurer = Measurer(config, algorithm, actors.learners, builder)
    stream = PromptStream(training, config.trainer.prompts_per_step, config.seed)
    run_ = Run(
        config=config,
        algorithm=algorithm,
        actors=actors,
        collector=Collector(config, algorithm, stream, actors, measurer),
        measurer=measurer,
        sync=WeightSync(config, actors.learners, actors.rollouts, training),
        evaluator=Evaluator(config, heldout, actors.rollouts, actors.verifiers),
        recorder=recorder,
        checkpoints=Checkpoints(folder / "checkpoints", config.trainer.keep_checkpoints),
        stop=stop,
        first_step=first_step,
    )
    try:
        recorder.proof(run_.sync.push(first_step))
        before = _evaluate(run_, 0) if config.eval.before and heldout and first_step == 0 else None
        done = train(run_)
        after = _evaluate(run_, done) if heldout and not stop.requested else None
    finally:
        recorder.close()
    _summarise(config, folder, done, before, after, time.monotonic() - began)


def _evaluate(run_: Run, done: int) -> Evaluation:
    found = run_.evaluator.evaluate()
    run_.recorder.evaluation(done, found)
    return found


def _summarise(
    config: Config, folder: Path, done: int, before: Evaluation | None, after: Evaluation | None, seconds: float
) -> None:
    """Writes summary.json; a run that was stopped early says so and has no final evaluation."""
    summary = {
        "algorithm": config.algo.name,
        "steps_done": done,
        "steps_planned": config.trainer.steps,
        "finished": done == config.trainer.steps,
        "seconds": round(seconds, 1),
        "evaluation_before": before.summary() if before else None,
        "evaluation": after.summary() if after else None,
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
    """The held-out problems, at most `eval.max_problems` of a level (a seeded choice; 0: all)."""
    problems = load_problems(config.data, held_out=True, seed=config.seed)
    limit = config.eval.max_problems
    if not limit:
        return problems
    by_level: dict[int | None, list[Problem]] = {}
    for problem in problems:
        by_level.setdefault(problem.level, []).append(problem)
    return [problem for of_level in by_level.values() for problem in of_level[:limit]]


def stop_ids(tokenizer: Any, config: Config) -> tuple[int, ...]:
    """Token ids that end a completion: the tokenizer's, and those of the model's generation settings."""
    ids = {int(tokenizer.eos_token_id)}
    settings = Path(config.model.path) / "generation_config.json"
    if settings.exists():
        listed = json.loads(settings.read_text()).get("eos_token_id", [])
        ids |= set(listed if isinstance(listed, list) else [listed])
    return tuple(sorted(ids))
