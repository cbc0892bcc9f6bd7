"""Measures one GPU in stages, each a process with a bound; figures are written while they are found.

    python -m bench.gpu --seconds 310 env kernels toy model          # on a machine with one GPU
    python -m bench.gpu --seconds 450 big learner engine
    python -m bench.gpu --seconds 450 --weights FOLDER --problems gsm8k.jsonl real
    python -m bench.gpu --rehearse                                    # every stage on a CPU, with tiny models

<out>/figures.json holds the figures of every stage, <out>/logs.txt what the stages and all actors printed.
`big` is followed by `big_eager` if it did not get to its first proof. Further key=value go to the stage `real`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import expo_ray
from bench.gpu import machine, parts, pipeline
from bench.gpu.setting import Setting, end_owned, figures_in, owned, tell
from expo_ray.files import write_whole

Work = Callable[[Setting, float], None]
STAGES: dict[str, tuple[Work, float, str]] = {
    "env": (lambda setting, _: machine.env(setting), 40, "memory, disk, versions, speed of copy, matmul, attention"),
    "kernels": (lambda setting, _: machine.kernels(setting), 75, "vLLM's kernels against plain torch"),
    "toy": (pipeline.toy, 200, "the whole colocated pipeline, eager: sleep, wake, CUDA IPC, proof, update"),
    "toy_graphs": (pipeline.toy_graphs, 200, "the same with torch.compile and CUDA graphs"),
    "model": (parts.model, 60, "random weights of a real shape"),
    "big": (pipeline.big, 330, "the pipeline with them: phases of a step, sync, memory"),
    "big_eager": (pipeline.big_eager, 200, "the same without torch.compile and graphs"),
    "learner": (parts.learner, 200, "one rank alone: update packed, compiled, and further ways; memory; profile"),
    "engine": (parts.engine, 280, "syncs to one engine beside a copy on the card; then sampling beside bare vLLM"),
    "real": (pipeline.real, 420, "real weights: GRPO and ExP-GRPO, half the time each"),
}
"""Stage -> its work, its bound in seconds, what it shows."""
REHEARSAL = ((("env", "kernels", "model", "engine", "learner"), ("real",)), (("big",),))
"""What a rehearsal runs, one row after the other: the processes of a row at the same time, the stages of a process in
turn. Nearly all the time goes into imports and starts, which keep one core busy at most. `big` needs the `model`, and
the toy stages are left out: the run on real weights takes their settings, and the toy task's weights."""
BEGINS = "STAGE "
"""Begins a line of a process's output from which on it belongs to the stage that the line names."""
WRITING = threading.Lock()
MARGIN_S = 5.0
LOOK_S = 2.0
LEAST_S = 15.0


def main(arguments: list[str] | None = None) -> int:
    """Runs the stages one after the other. Returns 0, or 1 if one failed."""
    stages = "\n".join(f"  {name:<12}{bound:>4} s  {what}" for name, (_, bound, what) in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"stages, each with its bound:\n{stages}",
    )  # fmt: skip
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="in this order")
    parser.add_argument("--seconds", type=float, default=900.0, help="bound on all stages together (default: 900)")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny models and few steps")
    parser.add_argument("--shape", default="3b", choices=parts.SHAPES, help="of the random weights (default: 3b)")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="real weights, for the stage real")
    parser.add_argument("--problems", type=Path, metavar="FILE", help="its problems as JSON Lines")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: $OUT, or a new folder in /tmp")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="default: new, where there is most room")
    parser.add_argument("--inside", metavar="STAGE", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    names = [word for word in chosen.stages if "=" not in word]
    if unknown := [name for name in names if name not in STAGES]:
        parser.error(f"there is no stage {unknown[0]} (stages: {', '.join(STAGES)})")
    if not names and not chosen.rehearse and not chosen.inside:
        parser.error(f"name the stages to run: {' '.join(STAGES)}")
    setting = _setting(chosen)
    if chosen.inside:
        for name in chosen.inside.split(","):
            print(f"\n{BEGINS}{name}", flush=True)
            began = time.monotonic()
            STAGES[name][0](setting, chosen.seconds)
            tell(inside_s=round(time.monotonic() - began, 1))
        return 0
    try:
        until = time.monotonic() + chosen.seconds
        if chosen.rehearse:
            everything = [name for row in REHEARSAL for group in row for name in group]
            figures = rehearse(setting, names or everything, until)
        else:
            figures = run_stages(setting, names, until)
    finally:
        if chosen.work is None:
            shutil.rmtree(setting.work, ignore_errors=True)
    print(f"figures: {setting.out / 'figures.json'}, logs: {setting.out / 'logs.txt'}")
    return 0 if all(found.get("code") == 0 for found in figures.values()) else 1


def _setting(chosen: argparse.Namespace) -> Setting:
    out = chosen.out or Path(os.environ.get("OUT") or mkdtemp(prefix="bench_gpu_out_"))
    out.mkdir(parents=True, exist_ok=True)
    work = chosen.work
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    else:
        # Nothing large is written, but a run refuses to start where a checkpoint would not fit.
        places = [place for place in ("/tmp", "/dev/shm") if Path(place).is_dir() and not chosen.rehearse]
        roomiest = max(places, key=lambda place: shutil.disk_usage(place).free, default=None)
        work = Path(mkdtemp(prefix="bench_gpu_", dir=roomiest))
    overrides = tuple(word for word in chosen.stages if "=" in word)
    weights, problems = chosen.weights, chosen.problems
    if chosen.rehearse:
        weights = weights or Path(expo_ray.__file__).parent / "world" / "base"
        problems = problems or _toy_problems(work / "problems.jsonl")
    return Setting(out.absolute(), work.absolute(), chosen.rehearse, chosen.shape, weights, problems, overrides)


def _toy_problems(file: Path) -> Path:
    """Writes some problems of the toy task as JSON Lines, as a user's file would hold them."""
    from expo_ray.world.running_totals import problems

    lines = [
        json.dumps({"question": p.question, "answer": p.answers[0], "solution": p.solution, "level": p.level})
        for p in problems("train", [1, 2], 60, 0)
    ]
    if not file.exists():
        write_whole(file, "".join(f"{line}\n" for line in lines))
    return file


def run_stages(setting: Setting, names: list[str], until: float) -> dict[str, dict[str, Any]]:
    """Runs the stages until `until` (monotonic seconds), and writes the figures while they are found.

    Returns:
        Each stage's figures, with its exit code ("time": it was ended at its bound) and seconds.
    """
    figures: dict[str, dict[str, Any]] = {}
    todo = list(names)
    while todo:
        name = todo.pop(0)
        left = until - time.monotonic()
        if left < LEAST_S:
            figures[name] = {"code": "skipped", "left_s": round(left)}
        else:
            _run(setting, [name], min(STAGES[name][1], left - MARGIN_S), figures)
        _write(setting, figures)
        _show(figures, name)
        if name == "big" and "big_first_proof" not in figures[name]:
            todo.insert(0, "big_eager")  # torch.compile or the graphs do not work here
    return figures


def rehearse(setting: Setting, names: list[str], until: float) -> dict[str, dict[str, Any]]:
    """Runs the stages on a CPU; arguments and figures are those of `run_stages`."""
    figures: dict[str, dict[str, Any]] = {}
    rows = [[chosen for group in row if (chosen := [n for n in group if n in names])] for row in REHEARSAL]
    known = {name for row in rows for group in row for name in group}
    for row in [*rows, *([[name]] for name in names if name not in known)]:
        left = until - time.monotonic() - MARGIN_S
        # A busy CPU takes longer to import than a card's host.
        bounds = [min(left, 3 * sum(STAGES[name][1] for name in group)) for group in row]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda group, bound: _run(setting, group, bound, figures), row, bounds))
        _show(figures, *(name for group in row for name in group))
    return figures


def _show(figures: dict[str, dict[str, Any]], *names: str) -> None:
    for name in names:
        print(f"== {name}: {json.dumps(figures[name])[:1500]}", flush=True)


def _run(setting: Setting, group: list[str], bound: float, figures: dict[str, dict[str, Any]]) -> None:
    """Runs stages in one process, of which only a rehearsal has several."""
    name = ",".join(group)
    began, log = time.monotonic(), setting.work / f"{name}.log"
    owner, environment = owned()
    with log.open("wb") as sink:
        child = subprocess.Popen(
            command(setting, name, bound - MARGIN_S), stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip
        code: int | str | None = None
        while code is None:
            try:
                code = child.wait(timeout=LOOK_S)
            except subprocess.TimeoutExpired:
                code = "time" if time.monotonic() - began > bound else None
            seconds, printed = round(time.monotonic() - began, 1), _by_stage(group, _text(log))
            for each in group:
                found = figures_in(printed[each])
                figures[each] = {"code": 0 if "inside_s" in found else code, "seconds": seconds, **found}
            _write(setting, figures)
        end_owned(owner)
        child.wait()
    if code != 0:
        failed = next(each for each in group if figures[each]["code"] != 0)
        figures[failed]["tail"] = _text(log)[-1500:]
    with (setting.out / "logs.txt").open("a") as all_logs:
        all_logs.write(f"\n######## {name} (code {code})\n{_text(log)[-200_000:]}")


def _by_stage(group: list[str], text: str) -> dict[str, str]:
    """What each stage of a process printed."""
    printed = dict(part.partition("\n")[::2] for part in text.split(f"\n{BEGINS}"))
    return {name: text if len(group) == 1 else printed.get(name, "") for name in group}


def command(setting: Setting, name: str, bound: float) -> list[str]:
    """What runs a stage, or several (`a,b`), in a process of its own."""
    found = [sys.executable, "-m", "bench.gpu", "--inside", name, "--seconds", f"{bound:.0f}", "--shape", setting.shape]
    found += ["--out", str(setting.out), "--work", str(setting.work)]
    for option, path in (("--weights", setting.weights), ("--problems", setting.problems)):
        found += [option, str(path)] if path is not None else []
    return [*found, *(["--rehearse"] if setting.rehearse else []), *setting.overrides]


def _text(log: Path) -> str:
    return log.read_text(errors="replace")


def _write(setting: Setting, figures: dict[str, dict[str, Any]]) -> None:
    """Figures of an earlier call with other stages stay in the file."""
    file = setting.out / "figures.json"
    with WRITING:
        earlier = json.loads(file.read_text()) if file.is_file() else {}
        write_whole(file, json.dumps({**earlier, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
