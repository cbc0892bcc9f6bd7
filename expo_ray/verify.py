"""Grade a file of responses: `python -m expo_ray.verify --input FILE.jsonl --output OUT.jsonl`.

Each input line is a JSON object with `response` (text) and `answer` (a gold answer, or a list of them, any one of
which counts). The output has the same lines in the same order with `verdict`, `extracted`, `method` and `ms` added,
and `credit` where a wrong answer earns a part of the reward.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from expo_ray.config.schema import VerifierConfig
from expo_ray.files import write_whole
from expo_ray.messages import Verdict
from expo_ray.verifier.pool import Item, VerifierPool
from expo_ray.verifier.tasks import task_problem

OUTCOMES = ("correct", "wrong", "no_answer", "timeout", "error")


class BadLine(ValueError):
    """An input line that is not a gradable item; the message names its number."""


def parse_line(line: bytes, number: int) -> dict[str, Any]:
    """The record of one input line.

    Raises:
        BadLine: not UTF-8, not a JSON object, or without a usable `response` and `answer`.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadLine(f"line {number}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadLine(f"line {number}: not a JSON object")
    if not isinstance(record.get("response"), str):
        raise BadLine(f"line {number}: `response` is missing or not a string")
    answers = record.get("answer")
    texts = answers if isinstance(answers, list) else [answers]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadLine(f"line {number}: `answer` is missing, or neither a string nor a list of strings")
    return record


def read_items(path: Path, skip_bad: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """All records of a file, and what was said of the lines left out (only with `skip_bad`).

    Raises:
        BadLine: the first malformed line, unless `skip_bad`.
    """
    records: list[dict[str, Any]] = []
    bad: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                records.append(parse_line(line, number))
            except BadLine as error:
                if not skip_bad:
                    raise
                bad.append(str(error))
    return records, bad


def to_item(record: dict[str, Any]) -> Item:
    """What the pool grades of a record; `meta` goes along where it is an object (reasoning-gym entries)."""
    answers = record["answer"] if isinstance(record["answer"], list) else [record["answer"]]
    meta = record.get("meta")
    return record["response"], tuple(answers), meta if isinstance(meta, dict) else {}


def grade(items: list[Item], config: VerifierConfig, show: bool) -> list[Verdict]:
    """Verdicts of all items, with a progress bar on stderr where `show`."""
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pool = VerifierPool(config)
    try:
        with Progress(*columns, disable=not show, transient=True, console=_stderr()) as bar:
            task = bar.add_task("verify", total=len(items))
            return pool.judge(items, progress=lambda left: bar.update(task, completed=len(items) - left))
    finally:
        pool.close()


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def write_output(path: Path, records: list[dict[str, Any]], verdicts: list[Verdict]) -> None:
    """Writes all lines at once: a reader never sees half a file."""
    lines = []
    for record, verdict in zip(records, verdicts, strict=True):
        found: dict[str, Any] = {"verdict": verdict.outcome, "extracted": verdict.extracted}
        found |= {"method": verdict.method, "ms": round(verdict.ms, 3)}
        found |= {"credit": verdict.credit} if verdict.credit else {}
        lines.append(json.dumps(record | found) + "\n")
    write_whole(path, "".join(lines))


def summary(verdicts: list[Verdict], seconds: float) -> str:
    """The closing line."""
    counts = {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in OUTCOMES}
    shares = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return f"{len(verdicts)} items, {shares}, {len(verdicts) / max(seconds, 1e-9):.1f} items/s"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 for a file that cannot be graded."""
    parser = argparse.ArgumentParser(prog="python -m expo_ray.verify", description="Grade a JSON Lines file.")
    parser.add_argument("--input", type=Path, required=True, help='lines {"response": text, "answer": text or list}')
    parser.add_argument("--output", type=Path, required=True, help="the same lines with their verdicts")
    parser.add_argument("--workers", type=int, default=1, help="grading processes")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for one item")
    parser.add_argument("--memory-mib", type=int, default=1024, help="memory of one process")
    parser.add_argument(
        "--task", default="math", help="math, gsm8k, choice, toy, reasoning_gym or package.module:Class"
    )
    parser.add_argument("--strict", action="store_true", help="only marked answers count")
    parser.add_argument("--skip-bad", action="store_true", help="leave malformed lines out and count them")
    options = parser.parse_args(arguments)
    if options.workers < 1 or options.timeout <= 0:
        parser.error("--workers must be at least 1 and --timeout above 0")
    if problem := task_problem(options.task):
        print(f"error: {problem.replace('verifier.name=', '--task ', 1)}", file=sys.stderr)
        return 2
    try:
        records, bad = read_items(options.input, options.skip_bad)
    except (BadLine, OSError) as error:
        print(f"{options.input}: {error}", file=sys.stderr)
        return 2
    config = VerifierConfig(name=options.task, processes=options.workers, timeout_s=options.timeout)
    config.memory_mib, config.strict = options.memory_mib, options.strict
    start = time.perf_counter()
    verdicts = grade([to_item(record) for record in records], config, show=sys.stderr.isatty())
    seconds = time.perf_counter() - start
    write_output(options.output, records, verdicts)
    if bad:
        print(f"{len(bad)} bad lines left out: " + "; ".join(bad[:10]), file=sys.stderr)
    print(summary(verdicts, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
