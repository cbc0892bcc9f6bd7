"""How a command ends: wrong input and failed runs are one sentence on standard error and an exit code."""

import sys
from collections.abc import Callable


def end_in_a_sentence(body: Callable[[], int]) -> int:
    """Runs a command's body.

    Returns:
        The body's exit code; 2 for wrong input; 1 for a failure that names its cause.
    """
    from expo_ray.config.errors import InputError
    from expo_ray.driver.stopping import LimitExceeded
    from expo_ray.learner.group import LearnersLost
    from expo_ray.runtime.waits import ActorFailed, WaitExpired
    from expo_ray.sync.errors import SyncError
    from expo_ray.verifier.reward import VerifierFailureRate

    try:
        return body()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (ActorFailed, WaitExpired, LearnersLost, SyncError, LimitExceeded, VerifierFailureRate) as error:
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
