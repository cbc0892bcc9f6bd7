"""One run from start to summary; if the learners are lost, it restarts them and resumes from the newest checkpoint."""

import json
import shlex
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from expo_ray.algorithms import make_algorithm
from expo_ray.algorithms.base import Algorithm, Inputs
from expo_ray.checkpoint.find import changed_settings, find_checkpoint, newest_valid
from expo_ray.checkpoint.publish import policy_folder, push, write_card
from expo_ray.checkpoint.state import DriverState, Identity, identify, rewind, set_aside
from expo_ray.checkpoint.store import Checkpoints
from expo_ray.config.keys import as_settings
from expo_ray.config.schema import Config
from expo_ray.data.stream import PromptStream
from expo_ray.driver.actors import Actors, WarmActors
from expo_ray.driver.groups import Ahead, Collector, Measurer
from expo_ray.driver.loop import Run, train
from expo_ray.driver.record import Recorder
from expo_ray.driver.stopping import StopSignal
from expo_ray.driver.trackers import make_trackers
from expo_ray.driver.weights import WeightSync
from expo_ray.evaluation.evaluator import Evaluator
from expo_ray.files import read_lines, write_whole
from expo_ray.learner.group import LearnersLost
from expo_ray.messages import Prompt
from expo_ray.preflight.checks import Checked, check_context
from expo_ray.preflight.inputs import with_merged_adapter
from expo_ray.preflight.model_folder import generation_ends
from expo_ray.prompts.builder import PromptBuilder
from expo_ray.prompts.loading import load_prompts, load_tokenizer, longest_sequence, make_builder, stop_ids
from expo_ray.rollout.requests import LengthBook
from expo_ray.runtime.journal import Events, Status
from expo_ray.runtime.spans import open_spans, write_trace


def run(checked: Checked, run_folder: Path, warm: WarmActors | None = None) -> None:
    """Trains as configured and leaves everything in the run folder (docs/run_folder.md).

    Args:
        checked: a run that passed its checks.
        run_folder: its folder.
        warm: keeps the actors for the next run of a sweep; without it they end with the run.

    Raises:
        InputError: prompts, tokenizer or resume path that cannot be used, before any actor starts.
    """
    began = time.monotonic()
    events = Events(run_folder)
    open_spans(run_folder / "logs", "driver")
    plan = with_merged_adapter(checked.plan, run_folder)
    config = plan.config
    tokenizer = load_tokenizer(config)
    builder = make_builder(tokenizer, config)
    training, heldout = load_prompts(config, builder, checked.problems, plan.context)
    ends = stop_ids(builder, generation_ends(config.model.path))
    identity = identify(config.model.path, training, ends)
    algorithm = make_algorithm(config)
    context = longest_sequence([*training, *heldout], config.rollout.max_completion_tokens)
    check_context(plan, context)
    context = min(context + algorithm.guidance_tokens(training), plan.context or sys.maxsize)
    check_context(plan, context)
    inputs = Inputs(identity.base_model, training, ends, builder.decode, builder, context, plan.context or 0)
    for sentence in algorithm.begin(inputs):
        events.note("reused", sentence)
    # By the settings as the user gave them: another run of an adapter merged it into a folder of its own.
    origin = find_checkpoint(checked.config, run_folder, identity, partial(events.note, "skipped"))
    keeper = warm or WarmActors()
    actors = keeper.take(plan, run_folder, context, ends, events)
    actors.rewards.chat = builder.style == "chat"
    try:
        with StopSignal() as stop:  # not earlier: there is nothing to save before
            job = Job(config, checked.config, run_folder, actors, builder, inputs, heldout, identity, stop, origin)
            done = supervise(job)
            stopped = stop.requested
    except BaseException:
        actors.close()
        raise
    finally:
        write_trace(run_folder)
    keeper.give_back(actors)
    if warm is None:
        keeper.close()
    seconds = time.monotonic() - began
    _summarise(config, run_folder, done, stopped, seconds)
    policy = policy_folder(run_folder, done)
    write_card(policy, checked.config, run_folder, done)  # again, with the last evaluation
    if config.trainer.push_to_hub is not None and done == config.trainer.steps:
        _summarise(config, run_folder, done, stopped, seconds, push(config, policy, events))


def _summarise(
    config: Config, folder: Path, done: int, stopped: bool, seconds: float, pushed: str | None = None
) -> None:
    """Writes summary.json; for a run that was stopped early, `finished` is false and there is no final evaluation."""
    by_step = {line.pop("steps_done"): line for line in read_lines(folder / "evaluations.jsonl", ("steps_done",))}
    summary = {
        "algorithm": config.algo.name,
        "steps_done": done,
        "steps_planned": config.trainer.steps,
        "finished": done == config.trainer.steps,
        "seconds": round(seconds, 1),
        "evaluation_before": by_step.get(0),
        "evaluation": None if stopped else by_step.get(done),
        "policy": str(policy_folder(folder, done)),
        "pushed": pushed,
        "command": shlex.join(["python", "-m", *_command()]),
    }
    write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _command() -> list[str]:
    """The command line of this run, as `python -m` takes it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name if spec else sys.argv[0], *sys.argv[1:]]


@dataclass
class Job:
    """Everything about a run that its restarts share."""

    config: Config
    given: Config
    """The same as the user gave it; only model.path can differ."""
    folder: Path
    actors: Actors
    builder: PromptBuilder
    inputs: Inputs
    heldout: list[Prompt]
    identity: Identity
    stop: StopSignal
    origin: Path | None
    """The checkpoint that the run started from; None for the base model."""


def supervise(job: Job) -> int:
    """Trains until the job ends, restarting lost learners.

    Returns:
        How many updates the policy has had.

    Raises:
        LearnersLost: the learners were lost more often than trainer.max_restarts.
    """
    actors, limit = job.actors, job.config.trainer.max_restarts
    checkpoint = job.origin
    for restart in range(limit + 1):
        try:
            return _attempt(job, checkpoint, restart)
        except LearnersLost as error:
            if restart == limit:
                raise
            actors.events.note("lost", f"{', '.join(error.ranks)}: {error}", actor=error.ranks[0], ranks=error.ranks)
            began = time.monotonic()
            actors.restart_learners()
            checkpoint = newest_valid(job.folder / "checkpoints", partial(actors.events.note, "skipped")) or job.origin
            actors.events.note(
                "restarted",
                f"the learners, in {time.monotonic() - began:.0f} s ({restart + 1} of trainer.max_restarts={limit})",
                seconds=round(time.monotonic() - began, 1),
            )
    raise AssertionError("the last attempt returns or raises")


def _attempt(job: Job, checkpoint: Path | None, restart: int) -> int:
    """Trains to the end from a checkpoint, or from the base model."""
    run = _assemble(job, checkpoint, restart)
    try:
        with run.recorder.status.phase("sync"):
            run.recorder.proof(run.sync.push(run.first_step))
        if job.config.eval.before and job.heldout and run.first_step == 0:
            run.recorder.evaluation(0, run.evaluator)
        done = train(run)
        if run.first_step >= done and not policy_folder(job.folder, done).exists():
            run.checkpoints.save(done, None, last=True)  # another run's last one: this folder has none yet
        if job.heldout and not job.stop.requested:
            run.recorder.evaluation(done, run.evaluator)
        return done
    finally:
        run.ahead.close()
        run.recorder.close()
        run.checkpoints.settle()


def _assemble(job: Job, checkpoint: Path | None, restart: int) -> Run:
    """Builds the parts of one attempt, in the state of the checkpoint."""
    config, folder, actors = job.config, job.folder, job.actors
    algorithm = make_algorithm(config)
    algorithm.begin(job.inputs)
    algorithm.attach(folder, actors.learners.score, job.builder.restate)
    first_step = _restore(job, checkpoint, algorithm, restart)
    status = Status(folder, lambda: actors.waiter.places)
    status.enter("starting")
    card = next((place.card for name, place in actors.waiter.places.items() if name.startswith("learner")), None)
    trackers = make_trackers(config, folder, first_step, as_settings(config), actors.events)
    recorder = Recorder(config, folder, trackers, status, actors.plan.shape, card)
    measurer = Measurer(config, algorithm, actors.learners, job.builder)
    lengths = LengthBook.of_run(folder)
    per_step, ahead = config.trainer.prompts_per_step, config.trainer.async_steps
    stream = PromptStream(job.inputs.prompts, per_step, config.seed, config.data.resample, ahead)
    stream.recall(folder)
    return Run(
        config=config,
        algorithm=algorithm,
        actors=actors,
        ahead=Ahead(config, Collector(config, algorithm, stream, actors, measurer, lengths)),
        measurer=measurer,
        sync=WeightSync(config, actors.learners, actors.rollouts, job.inputs.prompts),
        evaluator=Evaluator(config, job.heldout, actors.rollouts, actors.verifiers),
        recorder=recorder,
        checkpoints=Checkpoints(config, job.given, folder, actors.learners, algorithm, job.identity, actors.events),
        stop=job.stop,
        first_step=first_step,
    )


def _restore(job: Job, checkpoint: Path | None, algorithm: Algorithm, restart: int) -> int:
    """Puts learners, algorithm and record files in the checkpoint's state; returns its number of steps."""
    events = job.actors.events
    if checkpoint is None:
        if restart:
            rewind(job.folder, {})
        else:
            set_aside(job.folder)
        return 0
    state = DriverState.read(checkpoint)
    job.actors.learners.all("load", f"loading {checkpoint}", str(checkpoint))
    algorithm.load_state_dict(state.algorithm)
    rewind(job.folder, state.records, source=checkpoint.parents[1])
    for change in changed_settings(checkpoint, job.config) if not restart else []:
        events.note("changed", change)
    events.note("resumed", f"resuming after step {state.steps_done} from {checkpoint}", steps_done=state.steps_done)
    return state.steps_done
