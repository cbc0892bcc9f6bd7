"""Verifies a file of responses: `python -m expo_ray.verify --input FILE --output OUT.jsonl`.

FILE is in any format that training takes. Each record has `response` (text) and `answer` (a gold answer, or a list of
alternatives; text or numbers). The output is JSON Lines, the same records in the same order with `verdict`,
`extracted`, `method` and `ms` added, and `credit` if a wrong answer earns a part of the reward. It is written as the
work proceeds. Empty lines are ignored.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from expo_ray.config.errors import DataError, InputError
from expo_ray.config.schema import VerifierConfig
from expo_ray.data.formats import Record, read_records
from expo_ray.data.records import gold_texts, plain
from expo_ray.messages import Verdict
from expo_ray.verifier.pool import Item, VerifierPool
from expo_ray.verifier.tasks import WITHOUT_META, task_problem

PART = 256
"""Items for each process that are verified before their lines are written."""
OUTCOMES = ("correct", "wrong", "no_answer", "timeout", "error")


def read_items(path: Path, skip_bad: bool, task: str = "math") -> tuple[list[dict[str, Any]], list[Item], list[str]]:
    """Reads all records of a file, as training reads its problems.

    Args:
        path: a file of any format that training takes.
        skip_bad: leave out records that cannot be verified.
        task: name of the verifier task.

    Returns:
        The records, what the pool needs of each, and a sentence for each record that was left out.

    Raises:
        DataError: the file cannot be read; a record cannot be verified, unless `skip_bad`.
    """
    records: list[dict[str, Any]] = []
    items: list[Item] = []
    bad: list[str] = []
    if path.is_file() and not path.stat().st_size:
        return records, items, bad
    for record in read_records(str(path), "--input", bad if skip_bad else None):
        try:
            items.append(to_item(record, task))
        except DataError as error:
            if not skip_bad:
                raise
            bad.append(str(error))
        else:
            records.append(plain(record.fields))
    return records, items, bad


def to_item(record: Record, task: str) -> Item:
    """Returns what the pool needs of a record. A task that reads columns gets all others, and those of a `meta` object.

    Raises:
        DataError: it has no usable `response` and `answer`.
    """
    fields = record.fields
    response = fields.get("response", 0)
    response = "" if response is None else response  # an empty cell of a table
    if not isinstance(response, str):
        raise DataError(f"{record.where}: key 'response' is missing or not a text: write the response there")
    answers = gold_texts(record, "answer")
    if not answers:
        raise DataError(f"{record.where}: key 'answer' has nothing in it: write a text, a number or a list of them")
    meta = fields.get("meta")
    read = ("question",) if task in WITHOUT_META else set(fields) - {"response", "answer", "meta"}
    columns = {name: plain(fields[name]) for name in fields if name in read}
    return response, answers, columns | (plain(meta) if isinstance(meta, dict) else {})


def verify_items(items: list[Item], config: VerifierConfig, show: bool) -> Iterator[list[Verdict]]:
    """Yields the verdicts of all items, a part at a time; `show` draws a progress bar on standard error."""
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    size = PART * config.processes
    pool = VerifierPool(config)
    try:
        with Progress(*columns, disable=not show, transient=True, console=Console(stderr=True)) as bar:
            task = bar.add_task("verify", total=len(items))
            for first in range(0, len(items), size):
                part = items[first : first + size]
                done = first + len(part)

                def advance(left: int, done: int = done) -> None:
                    bar.update(task, completed=done - left)

                yield pool.judge(part, progress=advance)
    finally:
        pool.close()


def check_output(path: Path, source: Path) -> None:
    """Checks before the work that the output can be written.

    Raises:
        DataError: it cannot, or it is the input itself.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise DataError(f"--output {path}: the folder {folder} does not exist, make it first")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise DataError(f"--output {path}: this is a folder, or cannot be written; give another file")
    if path.exists() and source.exists() and path.samefile(source):
        raise DataError(f"--output {path} is the input, which would be lost; give another file")


def write_verdicts(path: Path, records: list[dict[str, Any]], parts: Iterable[list[Verdict]]) -> list[Verdict]:
    """Writes each part's lines as soon as it is verified: whatever ends the command, they are there.

    Raises:
        DataError: the file can no longer be written.
    """
    verdicts: list[Verdict] = []
    try:
        with path.open("w", encoding="utf-8") as file:
            for part in parts:
                lines = []
                for record, verdict in zip(records[len(verdicts) : len(verdicts) + len(part)], part, strict=True):
                    found: dict[str, Any] = {"verdict": verdict.outcome, "extracted": verdict.extracted}
                    found |= {"method": verdict.method, "ms": round(verdict.ms, 3)}
                    found |= {"credit": verdict.credit} if verdict.credit else {}
                    lines.append(json.dumps(record | found) + "\n")
                file.write("".join(lines))
                file.flush()
                verdicts += part
    except OSError as error:
        raise DataError(
            f"--output {path}: {error.strerror} after {len(verdicts)} of {len(records)} lines; give another file"
        ) from error
    return verdicts


def summary(verdicts: list[Verdict], seconds: float) -> str:
    """Formats the closing line."""
    counts = {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in OUTCOMES}
    shares = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return f"{len(verdicts)} items, {shares}, {len(verdicts) / max(seconds, 1e-9):.1f} items/s"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m expo_ray.verify", description="Verify a file of responses.")
    parser.add_argument(
        "--input", type=Path, required=True, help='lines {"response": text, "answer": text, number or list}'
    )
    parser.add_argument("--output", type=Path, required=True, help="the same lines with their verdicts")
    parser.add_argument("--workers", type=int, default=1, help="verifier processes")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds per item")
    parser.add_argument("--memory-mib", type=int, default=1024, help="memory per process")
    parser.add_argument(
        "--task", default="math", help="math, gsm8k, choice, toy, reasoning_gym, python_tests or package.module:Class"
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
    check_output(options.output, options.input)
    records, items, bad = read_items(options.input, options.skip_bad, options.task)
    config = VerifierConfig(
        name=options.task,
        processes=options.workers,
        timeout_s=options.timeout,
        memory_mib=options.memory_mib,
        strict=options.strict,
        percent_is_unit=options.percent_is_unit,
    )
    start = time.perf_counter()
    verdicts = write_verdicts(options.output, records, verify_items(items, config, show=sys.stderr.isatty()))
    seconds = time.perf_counter() - start
    if bad:
        print(f"{len(bad)} bad lines left out: " + "; ".join(bad[:10]), file=sys.stderr)
    print(summary(verdicts, seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
