"""The command `expo-ray`, and how every command ends: bad input and failed runs are one sentence and an exit code."""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from types import FrameType

COMMANDS = {
    "demo": "the whole pipeline in minutes: GRPO and ExP-GRPO on the toy task",
    "train": "train a policy on verifiable problems",
    "evaluate": "pass@k and majority@k of a model on held-out problems",
    "verify": "grade a file of responses",
    "report": "one HTML page about one or more runs",
    "submit": "train as a job of a running Ray cluster",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs `expo-ray COMMAND ...`, which is `python -m expo_ray.COMMAND ...`. Returns its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_help(), end="")
        return 0
    if name == "--version":
        from expo_ray import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        from expo_ray.config.errors import did_you_mean

        hint = did_you_mean(name, list(COMMANDS))
        print(f"error: '{name}' is not a command{hint} (commands: {', '.join(COMMANDS)})", file=sys.stderr)
        return 2
    if os.getcwd() not in sys.path:  # as python -m has it, for functions and classes of the user's own
        sys.path.insert(0, os.getcwd())
    code: int = import_module(f"expo_ray.{name}").main(rest)
    return code


def _help() -> str:
    from expo_ray.config.compose import choices_text

    lines = "\n".join(f"  {name:9} {meaning}" for name, meaning in COMMANDS.items())
    return (
        "usage: expo-ray COMMAND [arguments]\n\n"
        f"{lines}\n\n"
        "expo-ray COMMAND --help says what each takes. A folder conf/ in the working directory adds choices to the\n"
        f"packaged ones and goes before them.\n\n{choices_text()}"
    )


def end_by_signal(body: Callable[[], int]) -> int:
    """Runs a command's body, which Ctrl-C and SIGTERM end at once and with one line, unless it handles them itself.

    Returns:
        The body's exit code; 130 after Ctrl-C and 143 after SIGTERM, as shells count them.
    """
    ended = "SIGINT"

    def terminate(_number: int, _frame: FrameType | None) -> None:
        nonlocal ended
        if ended == "SIGTERM":  # the first is on its way out; another exception would end the cleaning up behind it
            return
        ended = "SIGTERM"
        raise KeyboardInterrupt  # the one exception that Ray lets through while it waits

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        return body()
    except KeyboardInterrupt as stopped:
        print(f"{ended}: {str(stopped) or 'stopped at once, without a checkpoint'}", file=sys.stderr)
        return 128 + signal.Signals[ended]
    finally:
        signal.signal(signal.SIGTERM, before)


def end_in_a_sentence(body: Callable[[], int]) -> int:
    """Runs a command's body, as `end_by_signal` does.

    Returns:
        The body's exit code; 2 for wrong input; 1 for a failure that names its cause; 130 or 143 after a signal.
    """
    from expo_ray.config.errors import InputError
    from expo_ray.driver.stopping import LimitExceeded
    from expo_ray.learner.group import LearnersLost
    from expo_ray.rewards.functions import VerifierFailureRate
    from expo_ray.runtime.waits import ActorFailed, RayLost, WaitExpired
    from expo_ray.sync import SyncError

    try:
        return end_by_signal(body)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (ActorFailed, WaitExpired, RayLost, LearnersLost, SyncError, LimitExceeded, VerifierFailureRate) as error:
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
