"""python -m expo_ray.submit [options] [group=choice] [key=value] [-m]: trains as a job of a running Ray cluster.

It follows the job's log and ends with the job's exit code.
"""

import os
import secrets
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from typing import Any

DESCRIPTION = """\
Runs `python -m expo_ray.train` with these overrides as a job of a running Ray cluster (docs/cluster.md).

The code travels to the nodes, where its packages are installed already. Token authentication is on unless
RAY_AUTH_MODE=disabled: Ray looks for the cluster's token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
Ctrl-C asks whether to stop the job. Exit code: the job's; 2: bad input, nothing was submitted; 130: stopped, or left.
"""


def main(arguments: list[str] | None = None) -> int:
    """Returns the job's exit code; 2: bad input; 130: the job was stopped, or left running."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
    from expo_ray.config.errors import InputError
    from expo_ray.submission.dashboard import NoAnswer, first_line
    from expo_ray.submission.job import INTERRUPTED, REQUEST_S, Follower, how_to, tell

    try:
        line = None if options.follow else _line(options)
        client = _connect(options.address, REQUEST_S)
        name = options.follow or f"expo_ray_{secrets.token_hex(6)}"
        if line is not None:
            _submit(client, name, line, options.upload_s)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    if options.no_wait:
        print(name)
        return 0
    try:
        return Follower(client, name, _ask_user if sys.stdin.isatty() else None).follow()
    except (NoAnswer, RuntimeError) as error:
        tell(f"{name}: {first_line(error)}; {how_to(client, name)}")
        return 1


def _parse(arguments: list[str]) -> Namespace:
    parser = ArgumentParser(
        prog="python -m expo_ray.submit",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="those of expo_ray.train")
    parser.add_argument("-m", "--multirun", action="store_true", help="a sweep, as one job")
    parser.add_argument("--address", help="the dashboard's, http://HOST:8265; default: this machine's")
    parser.add_argument("--runs", metavar="FOLDER", help="where runs go, if no run_dir is given; all nodes see it")
    parser.add_argument("--python", default="python", help="the interpreter's name on the nodes")
    parser.add_argument("--upload-s", type=float, default=600.0, help="bound on the upload of the code")
    parser.add_argument("--no-wait", action="store_true", help="print the job's name and leave it")
    parser.add_argument("--follow", metavar="NAME", help="follow this job again, submit nothing")
    options = parser.parse_intermixed_args(arguments)
    if options.follow and (options.overrides or options.no_wait):
        parser.error("--follow takes no overrides and no --no-wait")
    return options


def _line(options: Namespace) -> str:
    """Checks the overrides and returns the job's command line."""
    from expo_ray.submission.job import complete, entrypoint

    runs = options.runs or os.environ.get("EXPO_RUNS") or None
    return entrypoint(options.python, complete(options.overrides, runs, options.multirun), options.multirun)


def _connect(address: str | None, seconds: float) -> Any:
    """Connects Ray's client to the dashboard.

    Raises:
        ConfigError: there is no dashboard, or it rejects the token.
    """
    from ray.job_submission import JobSubmissionClient

    from expo_ray.config.errors import ConfigError
    from expo_ray.submission.dashboard import NoAnswer, ask, first_line

    def connect() -> Any:
        client = JobSubmissionClient(address)
        client.list_jobs()  # the first request that the token is asked for
        return client

    try:
        return ask(connect, seconds)
    except (NoAnswer, RuntimeError) as error:
        raise ConfigError(
            f"--address: no Ray dashboard that takes jobs at {address or 'the default address'} ({first_line(error)}): "
            "start Ray with --head, give --address http://HOST:8265, and the cluster's token in RAY_AUTH_TOKEN or "
            "~/.ray/auth_token (RAY_AUTH_MODE=disabled: the cluster has none)"
        ) from error


def _submit(client: Any, name: str, line: str, seconds: float) -> None:
    """Uploads the code and submits the job.

    Raises:
        ConfigError: the cluster did not accept it.
    """
    from expo_ray.config.errors import ConfigError
    from expo_ray.submission.dashboard import NoAnswer, first_line, submit
    from expo_ray.submission.job import how_to, runtime_env, tell

    try:
        submit(client, seconds, entrypoint=line, runtime_env=runtime_env(), submission_id=name)
    except KeyboardInterrupt:
        tell(f"{name} may have been submitted by now; {how_to(client, name)}")
        raise
    except (NoAnswer, RuntimeError, ValueError) as error:
        raise ConfigError(f"the job could not be submitted: {first_line(error)}") from error
    tell(f"{name}: {line.removeprefix('exec ')}")


def _ask_user() -> str:
    print(
        "\nStop the job? [y] after its step, with a checkpoint  [n] leave it running  [c] keep following: ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    answer = sys.stdin.readline().strip().lower()
    return {"y": "stop", "c": "go on"}.get(answer[:1], "leave")


if __name__ == "__main__":
    sys.exit(main())
