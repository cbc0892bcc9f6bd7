"""The training loop: one pass is one step of ExPO (arXiv 2507.02834), in the order in which data flows.

prompts -> rollouts -> verdicts -> training batch -> update -> sync
"""

from dataclasses import dataclass

from expo_ray.algorithms.base import Algorithm
from expo_ray.checkpoint.store import Checkpoints
from expo_ray.config.schema import Config
from expo_ray.driver.actors import Actors
from expo_ray.driver.groups import Ahead, Measurer
from expo_ray.driver.record import Recorder
from expo_ray.driver.stopping import StopSignal, check_failures, check_mismatch, check_staleness
from expo_ray.driver.weights import WeightSync
from expo_ray.evaluation.evaluator import Evaluator


@dataclass
class Run:
    """The parts that the loop uses; expo_ray.driver.run builds them."""

    config: Config
    algorithm: Algorithm
    actors: Actors
    ahead: Ahead
    measurer: Measurer
    sync: WeightSync
    evaluator: Evaluator
    recorder: Recorder
    checkpoints: Checkpoints
    stop: StopSignal
    first_step: int = 0


def train(run: Run) -> int:
    """Trains from `first_step` to `trainer.steps`, or until the run is asked to stop.

    Returns:
        How many updates the policy has had.

    Raises:
        SyncProofFailed: engines and learners hold different weights.
        VerifierFailureRate, LimitExceeded: the verifier failed too often; engine and learner disagree; samples are
            older than allowed.
        LearnersLost: a learner rank is gone; `driver.run.supervise` resumes from the newest checkpoint.
    """
    config, learners = run.config, run.actors.learners
    for step in range(run.first_step, config.trainer.steps):
        with run.recorder.step(step) as record:
            groups = run.ahead.groups(step, record)  # o_i ~ pi(.|q), c~ ~ pi(.|q,a*), verdicts
            check_failures(groups, config)
            check_staleness(groups, step, config)
            run.actors.rollouts.rest()

            properties = run.measurer.properties(groups, step, record)  # log pi(c|q), rise of log pi(a*|q,c)
            with record.phase("batch"):
                batch = run.algorithm.training_batch(groups, step, properties)  # advantages; q -> c~ -> a*
            run.measurer.trained(groups, batch, record)
            with record.phase("update"):
                update = learners.update(batch)
            check_mismatch(update, config)

            with record.phase("sync"):
                proof = run.sync.push(step + 1)
            record.finish(groups, batch, update, proof)
            record.usage(run.actors)

        run.actors.step_done()
        if _between_steps(run, step + 1):
            return step + 1
    return config.trainer.steps


def _between_steps(run: Run, done: int) -> bool:
    """Evaluates and saves a checkpoint if they are due after `done` steps; returns whether to stop."""
    trainer, score = run.config.trainer, None
    last = done == trainer.steps or run.stop.requested
    if trainer.eval_every and done % trainer.eval_every == 0 and not last:
        run.ahead.settle()
        score = run.recorder.evaluation(done, run.evaluator)
    if last or run.checkpoints.due(done) or run.stop.preempted(run.actors):
        run.ahead.settle()
        with run.recorder.status.phase("checkpoint"):
            run.checkpoints.save(done, score, last)
    return run.stop.requested
