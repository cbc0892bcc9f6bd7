"""Bounds beyond which a run must not go on in silence."""

from expo_ray.config.schema import Config
from expo_ray.messages import Group, UpdateReport
from expo_ray.verifier.reward import check_failure_rate


class LimitExceeded(RuntimeError):
    """A measured value passed the bound that the configuration sets for it."""


def check_mismatch(update: UpdateReport, config: Config) -> None:
    """Compares the mean absolute train-against-rollout difference with `trainer.max_mismatch`, nats a token.

    Raises:
        LimitExceeded: engine and trainer disagree more than that.
    """
    found = update.metrics.get("mismatch/mean_abs", 0.0)
    if not found <= config.trainer.max_mismatch:
        raise LimitExceeded(
            f"engine and trainer disagree by {found:.4g} nats a token on the mean, more than "
            f"trainer.max_mismatch={config.trainer.max_mismatch}; compare rollout.dtype={config.rollout.dtype} with "
            f"learner.dtype={config.learner.dtype}, or raise the bound if this precision is meant"
        )


def check_failures(groups: list[Group], config: Config) -> None:
    """Compares the share of timeouts and errors among a step's verdicts with `verifier.max_failure_rate`.

    Raises:
        VerifierFailureRate: too many answers could not be graded.
    """
    verdicts = [verdict for group in groups for verdict in (*group.verdicts, *group.explanation_verdicts)]
    check_failure_rate(verdicts, config.verifier)
