"""Comparison with TRL's GRPOTrainer: `python -m bench.trl fixed|mixed|smollm2 [--model FOLDER] [KEY=VALUE ...]`.

Both sides have the same machine, model, prompts, lengths, group size, reward, optimizer and number of updates. TRL
generates with Hugging Face transformers, in `.venv-trl` (made by bench/trl/setup.sh), with the threads and the
micro-batch that a short trial finds best for it. Rounds alternate: ours, TRL, ours, TRL, ... KEY=VALUE are further
overrides for ours. Exit code: 0, or 1 if the bar is missed or the two sides did not do the same work.
"""

import argparse
import json
import signal
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from bench.trl.cases import CASES, Case, our_overrides, peer_spec, write_problems
from bench.trl.compare import SideRun, Verdict, compare
from bench.trl.sides import SideFailed, run_ours, run_trl

TRIAL_UPDATES = 3
THREADS = (1, 2)


def best_of_trl(case: Case, overrides: list[str], folder: Path) -> tuple[int, int]:
    """Returns the `(threads, micro-batch)` with TRL's shortest steps, from a short run of each choice."""
    spec = peer_spec(case, overrides, TRIAL_UPDATES, seed=0, scratch=folder)
    found: dict[tuple[int, int], float] = {}
    for threads in THREADS:
        for micro_batch in case.micro_batches:
            run = run_trl(spec, threads, micro_batch, folder / f"trial_{threads}_{micro_batch}")
            found[threads, micro_batch] = run.steady_seconds
            say(f"TRL trial: {threads} threads, {micro_batch} at once: {run.steady_seconds:.2f} s/step")
    return min(found, key=found.__getitem__)


def rounds(
    case: Case, overrides: list[str], folder: Path, choice: tuple[int, int]
) -> tuple[list[SideRun], list[SideRun]]:
    """Runs both sides alternately, each round on different prompts."""
    ours: list[SideRun] = []
    trl: list[SideRun] = []
    for number in range(case.rounds):
        ours.append(run_ours(overrides, case.updates, number, folder / f"ours_{number}"))
        say(f"round {number + 1}: ours {ours[-1].steady_seconds:.2f} s/step, {ours[-1].total_seconds:.0f} s in total")
        spec = peer_spec(case, overrides, case.updates, number, folder)
        trl.append(run_trl(spec, *choice, folder / f"trl_{number}"))
        say(f"round {number + 1}: TRL  {trl[-1].steady_seconds:.2f} s/step, {trl[-1].total_seconds:.0f} s in total")
    return ours, trl


def show(case: Case, found: Verdict, ours: list[SideRun], trl: list[SideRun]) -> None:
    """Prints a case's results."""
    print(f"{case.name}: {case.updates} updates of {case.prompts_per_step} prompts x {case.group} completions")
    for name, runs, speed, total in (
        ("ours", ours, found.ours_samples_per_s, found.ours_total_s),
        ("TRL", trl, found.trl_samples_per_s, found.trl_total_s),
    ):
        tokens = sum(sum(run.step_tokens) for run in runs)
        mean = sum(run.mean_tokens for run in runs) / len(runs)
        start = sum(run.start_seconds for run in runs) / len(runs)
        print(
            f"  {name:4} {speed:7.1f} samples/s steady; {total:6.1f} s to {case.updates} updates from the command, "
            f"the first ends after {start:5.1f} s; {tokens} tokens, {mean:.1f} per completion"
        )
    spread = f"{min(found.ratios):.2f} to {max(found.ratios):.2f}"
    print(f"  steady state: {found.ratio:.2f} times TRL's samples/s (rounds: {spread}; bar {case.bar})")
    even = "never" if found.even_updates is None else f"after {found.even_updates:.0f} updates"
    print(f"  with start-up: {found.total_ratio:.2f} times as fast to {case.updates} updates; ours is ahead: {even}")


def say(sentence: str) -> None:
    """Prints progress on standard error."""
    print(sentence, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.trl", description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--model", type=Path, help="Hugging Face folder; needed for smollm2, made here otherwise")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--updates", type=int)
    parser.add_argument("--threads", type=int, choices=THREADS, help="TRL's threads, without a trial")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_trl"))
    arguments, more = parser.parse_known_args()
    chosen = {key: value for key in ("rounds", "updates") if (value := getattr(arguments, key)) is not None}
    case = Case(**asdict(CASES[arguments.case]) | chosen)
    if case.name == "smollm2" and arguments.model is None:
        parser.error("smollm2 needs --model FOLDER")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running side is ended too
    folder = (arguments.folder / f"{case.name}_{datetime.now():%Y-%m-%d_%H-%M-%S}").absolute()
    folder.mkdir(parents=True)
    write_problems(folder / "problems.jsonl")
    try:
        model = arguments.model or _made(case.name, arguments.folder.absolute() / "models")
        overrides = our_overrides(case, model.absolute(), folder, more)
        trial = arguments.threads is None
        choice = best_of_trl(case, overrides, folder) if trial else (arguments.threads, case.micro_batches[0])
        ours, trl = rounds(case, overrides, folder, choice)
    except SideFailed as error:
        say(f"error: {error}")
        return 1
    found = compare(ours, trl, case.max_completion_tokens, case.exact)
    record = {"case": asdict(case), "trl_threads": choice[0], "trl_micro_batch": choice[1], "verdict": asdict(found)}
    runs = {"ours": [asdict(run) for run in ours], "trl": [asdict(run) for run in trl]}
    (folder / "result.json").write_text(json.dumps(record | runs | {"overrides": overrides}, indent=1))
    show(case, found, ours, trl)
    for refusal in found.refusals:
        print(f"  REFUSED {refusal}")
    print(folder)
    return 1 if found.refusals or found.ratio < case.bar else 0


def _made(name: str, folder: Path) -> Path:
    from bench.trl.models import make

    return make(name, folder)


if __name__ == "__main__":
    sys.exit(main())
