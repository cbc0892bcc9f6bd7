"""Verifies a file of responses: `python -m expo_ray.verify --input FILE.jsonl --output OUT.jsonl`.

Each input line is a JSON object with `response` (text) and `answer` (a gold answer, or a list of alternatives; text or
numbers). The output has the same lines in the same order with `verdict`, `extracted`, `method` and `ms` added, and
`credit` if a wrong answer earns a part of the reward. Empty lines at the end of the file are ignored.
"""

import argparse
import json
import math
import os
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from expo_ray.config.errors import DataError, InputError
from expo_ray.config.schema import VerifierConfig
from expo_ray.files import write_whole
from expo_ray.messages import Verdict
from expo_ray.verifier.pool import Item, VerifierPool
from expo_ray.verifier.tasks import task_problem

OUTCOMES = ("correct", "wrong", "no_answer", "timeout", "error")


class BadLine(DataError):
    """An input line that cannot be verified; the message names its number."""


def parse_line(line: bytes, number: int) -> dict[str, Any]:
    """Parses one input line.

    Raises:
        BadLine: the line is not UTF-8 or not a JSON object, or it has no usable `response` and `answer`.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadLine(f"line {number}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadLine(f"line {number}: not a JSON object")
    if not isinstance(record.get("response"), str):
        raise BadLine(f"line {number}: `response` is missing or not a string")
    if not gold_answers(record):
        raise BadLine(f"line {number}: `answer` is missing, or not text, a number or a list of them")
    return record


def gold_answers(record: dict[str, Any]) -> tuple[str, ...]:
    """Returns a record's gold answers as text; empty if there are none or one is neither text nor a finite number."""
    answers = record.get("answer")
    texts = [_answer_text(answer) for answer in (answers if isinstance(answers, list) else [answers])]
    return tuple(text for text in texts if text is not None) if None not in texts else ()


def _answer_text(answer: Any) -> str | None:
    if isinstance(answer, str):
        return answer
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not math.isfinite(answer):
        return None
    return format(Decimal(repr(answer)), "f")  # 1e-05 is written out, because no task reads that form as a number


def read_items(path: Path, skip_bad: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads all records of a file, and a sentence for each line that was left out (only with `skip_bad`).

    Raises:
        BadLine: the first malformed line, unless `skip_bad`.
        DataError: the file cannot be read.
    """
    records: list[dict[str, Any]] = []
    bad: list[str] = []
    try:
        lines = path.read_bytes().rstrip().splitlines()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, 1):
        try:
            records.append(parse_line(line, number))
        except BadLine as error:
            if not skip_bad:
                raise
            bad.append(str(error))
    return records, bad


def to_item(record: dict[str, Any]) -> Item:
    """Returns what the pool needs of a record; `meta` is passed on if it is an object (reasoning-gym entries)."""
    meta = record.get("meta")
    asked = {"question": record["question"]} if isinstance(record.get("question"), str) else {}
    return record["response"], gold_answers(record), asked | (meta if isinstance(meta, dict) else {})


def verify_items(items: list[Item], config: VerifierConfig, show: bool) -> list[Verdict]:
    """Returns the verdicts of all items; `show` draws a progress bar on standard error."""
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pool = VerifierPool(config)
    try:
        with Progress(*columns, disable=not show, transient=True, console=Console(stderr=True)) as bar:
            task = bar.add_task("verify", total=len(items))
            return pool.judge(items, progress=lambda left: bar.update(task, completed=len(items) - left))
    finally:
        pool.close()


def check_output(path: Path) -> None:
    """Checks before the work that the output can be written.

    Raises:
        DataError: it cannot.
    """
    if not path.absolute().parent.is_dir():
        raise DataError(f"--output {path}: the folder {path.absolute().parent} does not exist, make it first")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise DataError(f"--output {path}: this is a folder, or its folder is not writable; give another file")


def write_output(path: Path, records: list[dict[str, Any]], verdicts: list[Verdict]) -> None:
    """Writes all lines at once, so that a reader never sees half a file."""
    lines = []
    for record, verdict in zip(records, verdicts, strict=True):
        found: dict[str, Any] = {"verdict": verdict.outcome, "extracted": verdict.extracted}
        found |= {"method": verdict.method, "ms": round(verdict.ms, 3)}
        found |= {"credit": verdict.credit} if verdict.credit else {}
        lines.append(json.dumps(record | found) + "\n")
    write_whole(path, "".join(lines))


def summary(verdicts: list[Verdict], seconds: float) -> str:
    """Formats the closing line."""
    counts = {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in OUTCOMES}
    shares = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return f"{len(verdicts)} items, {shares}, {len(verdicts) / max(seconds, 1e-9):.1f} items/s"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m expo_ray.verify", description="Verify a JSON Lines file.")
    parser.add_argument(
        "--input", type=Path, required=True, help='lines {"response": text, "answer": text, number or list}'
    )
    parser.add_argument("--output", type=Path, required=True, help="the same lines with their verdicts")
    parser.add_argument("--workers", type=int, default=1, help="verifier processes")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds per item")
    parser.add_argument("--memory-mib", type=int, default=1024, help="memory per process")
    parser.add_argument(
        "--task", default="math", help="math, gsm8k, choice, toy, reasoning_gym or package.module:Class"
    )
    parser.add_argument("--strict", action="store_true", help="only marked answers count")
    parser.add_argument("--percent-is-unit", action="store_true", help="50%% also equals 50, not only 0.5")
    parser.add_argument("--skip-bad", action="store_true", help="leave out malformed lines and count them")
    options = parser.parse_args(arguments)
    if options.workers < 1 or options.timeout <= 0:
        parser.error("--workers must be at least 1 and --timeout above 0")
    try:
        return _verify(options)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _verify(options: argparse.Namespace) -> int:
    if problem := task_problem(options.task):
        raise DataError(problem.replace("verifier.name=", "--task ", 1))
    check_output(options.output)
    try:
        records, bad = read_items(options.input, options.skip_bad)
    except DataError as error:
        raise DataError(f"{options.input}: {error}") from error
    config = VerifierConfig(
        name=options.task,
        processes=options.workers,
        timeout_s=options.timeout,
        memory_mib=options.memory_mib,
        strict=options.strict,
        percent_is_unit=options.percent_is_unit,
    )
    start = time.perf_counter()
    verdicts = verify_items([to_item(record) for record in records], config, show=sys.stderr.isatty())
    seconds = time.perf_counter() - start
    write_output(options.output, records, verdicts)
    if bad:
        print(f"{len(bad)} bad lines left out: " + "; ".join(bad[:10]), file=sys.stderr)
    print(summary(verdicts, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
