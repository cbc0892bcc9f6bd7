"""What ends a run early: limits on measured values, Ctrl-C and SIGTERM, and preemption notices."""

import signal
import sys
from types import FrameType

from expo_ray.config.schema import Config
from expo_ray.driver.actors import Actors
from expo_ray.messages import Group, UpdateReport
from expo_ray.rewards.functions import check_failure_rate, own_functions


class LimitExceeded(RuntimeError):
    """A measured value is beyond the bound that the configuration sets for it."""


def _sampled(groups: list[Group]) -> list[Group]:
    """The groups, each followed by what was drawn again after a guided prompt."""
    return [each for group in groups for each in (group, group.guided) if each is not None]


def staleness(groups: list[Group], step: int) -> dict[str, float]:
    """How many updates the learners' weights are ahead of the weights with which sampling of each completion began."""
    behind = [step - completion.weight_version for group in _sampled(groups) for completion in group.rollout.sampled]
    if not behind:
        return {}
    return {"staleness/mean": sum(behind) / len(behind), "staleness/max": float(max(behind))}


def check_staleness(groups: list[Group], step: int, config: Config) -> None:
    """Compares the samples' weight versions with `trainer.async_steps`.

    Raises:
        LimitExceeded: a sample is older than that, or its version is one that the learners never had.
    """
    allowed = range(step - config.trainer.async_steps, step + 1)
    for group in _sampled(groups):
        for completion in group.rollout.sampled:
            if completion.weight_version not in allowed:
                raise LimitExceeded(
                    f"problem {group.rollout.prompt.problem.uid} was sampled with weights of version "
                    f"{completion.weight_version} for step {step}; trainer.async_steps={config.trainer.async_steps} "
                    f"allows {allowed[0]} to {step}"
                )


def check_mismatch(update: UpdateReport, config: Config) -> None:
    """Compares the mean absolute difference of engine and learner, nats a token, with `trainer.max_mismatch`.

    With `trainer.async_steps` there is no bound: the samples' older weights alone make a difference.

    Raises:
        LimitExceeded: engine and learner disagree more than that.
    """
    found = update.metrics.get("mismatch/mean_abs", 0.0)
    if not config.trainer.async_steps and not found <= config.trainer.max_mismatch:
        raise LimitExceeded(
            f"engine and learner disagree by {found:.4g} nats a token on average, more than "
            f"trainer.max_mismatch={config.trainer.max_mismatch}; compare rollout.dtype={config.rollout.dtype} with "
            f"learner.dtype={config.learner.dtype}, or raise the bound if this precision is intended"
        )


def check_failures(groups: list[Group], config: Config) -> None:
    """Compares the share of timeouts and errors among a step's verdicts with `verifier.max_failure_rate`, and each
    reward function's failures with `reward.max_failure_rate`.

    Raises:
        VerifierFailureRate: too many answers could not be verified.
        LimitExceeded: a reward function failed too often.
    """
    sampled = _sampled(groups)
    verdicts = [verdict for group in sampled for verdict in (*group.verdicts, *group.explanation_verdicts)]
    check_failure_rate(verdicts, config.verifier)
    for name in own_functions(config.reward):
        scores = [score for group in sampled for score in group.scores[name]]
        failures = [score.failure for score in scores if score.failure]
        if len(failures) > config.reward.max_failure_rate * len(scores):
            raise LimitExceeded(
                f"reward function {name} failed on {len(failures)} of {len(scores)} completions, more than "
                f"reward.max_failure_rate={config.reward.max_failure_rate:g} allows; the first: {failures[0]}. The "
                "logs of the reward actors show the first failure of each kind in full"
            )


class StopSignal:
    """A context in which SIGINT and SIGTERM set `requested`; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._reported: set[str] = set()

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def preempted(self, actors: Actors) -> bool:
        """Whether Ray has announced, since the last call, that a node with our actors will be preempted."""
        fresh = [name for name in actors.draining() if name not in self._reported]
        if fresh:
            self._reported |= set(fresh)
            actors.events.note("preempted", f"the nodes of {', '.join(fresh)} will be taken away: checkpoint now")
        return bool(fresh)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.requested:  # make passes on the SIGTERM that its whole group has had
            return
        self.requested = True
        print(
            f"{signal.Signals(number).name}: stopping after this step, with a checkpoint (Ctrl-C again stops at once)",
            file=sys.stderr,
        )
