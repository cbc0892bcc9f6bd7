"""From verdicts to rewards, and the bound on verdicts that say nothing."""

from collections.abc import Iterable

from expo_ray.config.schema import VerifierConfig
from expo_ray.messages import Outcome, Verdict

FAILURES: tuple[Outcome, ...] = ("timeout", "error")


class VerifierFailureRate(RuntimeError):
    """More verdicts than `verifier.max_failure_rate` allows are timeouts or errors: the reward means nothing."""


def reward(verdict: Verdict, config: VerifierConfig) -> float | None:
    """The reward of one completion, or None where it is left out of its group (timeout, error)."""
    if verdict.outcome == "correct":
        return config.reward_correct
    if verdict.outcome in FAILURES and not config.count_failures_as_wrong:
        return None
    return config.reward_wrong + verdict.credit * (config.reward_correct - config.reward_wrong)


def check_failure_rate(verdicts: Iterable[Verdict], config: VerifierConfig) -> float:
    """The share of timeouts and errors among a step's verdicts, 0 to 1 (0 without verdicts).

    Raises:
        VerifierFailureRate: the share passes `config.max_failure_rate`.
    """
    outcomes = [verdict.outcome for verdict in verdicts]
    failed = {outcome: outcomes.count(outcome) for outcome in FAILURES}
    rate = sum(failed.values()) / len(outcomes) if outcomes else 0.0
    if rate > config.max_failure_rate:
        own = f" An exception in {config.name} is an error: call it by hand to see it." if ":" in config.name else ""
        raise VerifierFailureRate(
            f"{failed['timeout']} timeouts and {failed['error']} errors in {len(outcomes)} verdicts: {rate:.1%} is "
            f"more than verifier.max_failure_rate={config.max_failure_rate:.1%}. Raise verifier.timeout_s or "
            f"verifier.memory_mib, or look at the responses.{own}"
        )
    return rate
