"""`python -m bench.ladder.run FOLDER`: runs a comparison's methods; the same command continues where it stopped.

For each method a small search of the learning rate, with a seed of its own, and then the compared runs with the rate
that reached most: FOLDER/search/METHOD and FOLDER/runs/METHOD/RATE are sweeps, FOLDER/base an evaluation of the base.
Methods run --at-once; what is finished is not run again, so the ladder can be run in parts: --methods, or stop it.
"""

import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

from bench.ladder.methods import COMPARISONS, METHODS, Comparison, Method
from expo_ray.config.compose import compose_config
from expo_ray.config.errors import InputError
from expo_ray.files import read_summary
from expo_ray.sweep.job import is_finished

STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0; 1: a job failed; 2: bad input; 130: it was stopped."""
    parser = ArgumentParser(
        prog="python -m bench.ladder.run",
        usage="%(prog)s FOLDER [--comparison NAME] [--methods NAME ...] [--at-once N] [--plan] [-- key=value ...]",
        description=__doc__,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--comparison", choices=list(COMPARISONS), default="toy", help="(default: toy)")
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in METHODS], help="default: all")
    parser.add_argument("--at-once", type=int, default=2, help="methods; each takes a core and 5 GiB (default: 2)")
    parser.add_argument("--plan", action="store_true", help="print what would run, and the hours")
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    given, overrides = parser.parse_args(words[:end]), words[end + 1 :]
    of = COMPARISONS[given.comparison]
    chosen = [method for method in METHODS if given.methods is None or method.name in given.methods]
    jobs = len(chosen) * of.jobs
    print(
        f"{len(chosen)} methods, {jobs} jobs: about {jobs * of.minutes / 60 / given.at_once:.1f} hours with "
        f"{given.at_once} at once, less what is finished in {given.folder}",
        flush=True,
    )
    if given.plan:
        for method in chosen:
            print(method.name, *search_command(given.folder, of, method, of.rates, overrides)[3:])
        return 0
    try:
        for method in chosen if of.searches else ():
            _check_search(given.folder, of, method, overrides)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    stop = Event()
    with ThreadPoolExecutor(given.at_once) as pool:
        codes = _results([pool.submit(_base, given.folder, of, overrides, stop)], stop)
        codes += _results([pool.submit(_run, given.folder, of, method, overrides, stop) for method in chosen], stop)
    return STOPPED if stop.is_set() else int(any(codes))


def _results(running: Sequence[Future[int]], stop: Event) -> list[int]:
    """Waits for exit codes. Ctrl-C sets `stop`.

    A terminal's Ctrl-C goes to the jobs too, which end after their step with a checkpoint: they are not killed here.
    """
    while True:
        try:
            return [future.result() for future in running]
        except KeyboardInterrupt:
            stop.set()


def search_command(
    folder: Path, of: Comparison, method: Method, rates: Sequence[float], overrides: Sequence[str]
) -> list[str]:
    """The sweep that looks for a method's learning rate."""
    return _sweep(folder / "search" / method.name, of, _search_keys(of, method, rates, overrides))


def _search_keys(of: Comparison, method: Method, rates: Sequence[float], overrides: Sequence[str]) -> list[str]:
    given = ",".join(f"{rate:g}" for rate in rates)
    seed = f"seed={of.search_seed}"
    return [*method.overrides, seed, "data.levels=[]", f"learner.learning_rate={given}", *overrides]


def runs_command(folder: Path, of: Comparison, method: Method, rate: float, overrides: Sequence[str]) -> list[str]:
    """The sweep of a method's compared runs."""
    seeds, settings = ",".join(map(str, of.seeds)), ",".join(of.settings)
    keys = [f"seed={seeds}", f"data.levels={settings}", f"learner.learning_rate={rate:g}"]
    return _sweep(runs_folder(folder, method, rate), of, [*method.overrides, *keys, *overrides])


def runs_folder(folder: Path, method: Method, rate: float) -> Path:
    """The sweep of a method's compared runs with one learning rate."""
    return folder / "runs" / method.name / f"{rate:g}"


def _sweep(folder: Path, of: Comparison, overrides: list[str]) -> list[str]:
    start = [sys.executable, "-m", "expo_ray.train", "-m", f"experiment={of.experiment}"]
    return [*start, *overrides, f"run_dir={folder}"]


def search_results(folder: Path, method: Method) -> dict[float, float]:
    """Learning rate -> pass@k over all levels, of the search's finished jobs; k is `eval.samples`."""
    found: dict[float, float] = {}
    for job in finished_jobs(folder / "search" / method.name):
        evaluation = read_summary(job)["evaluation"]
        found[_rate(job)] = float(evaluation["pass_at_k"]["all"][str(evaluation["samples"])])
    return dict(sorted(found.items()))


def _rate(job: Path) -> float:
    from omegaconf import OmegaConf

    return float(OmegaConf.select(OmegaConf.load(job / "config.yaml"), "learner.learning_rate"))


def finished_jobs(sweep: Path) -> list[Path]:
    """The folders of a sweep's jobs that finished, with an evaluation."""
    summaries = {file.parent: read_summary(file.parent) for file in sorted(sweep.glob("*/summary.json"))}
    return [job for job, summary in summaries.items() if summary.get("finished") and summary.get("evaluation")]


def _check_search(folder: Path, of: Comparison, method: Method, overrides: Sequence[str]) -> None:
    """Raises ConfigError if a finished search had other overrides: its rate would not be that of these runs."""
    for job in finished_jobs(folder / "search" / method.name):
        keys = _search_keys(of, method, [_rate(job)], overrides)
        is_finished(job, compose_config([f"experiment={of.experiment}", *keys]))


def best_rate(results: dict[float, float]) -> float:
    """The rate that reached most; of equal ones the smallest."""
    return max(sorted(results), key=lambda rate: results[rate])


def rates_to_search(of: Comparison, results: dict[float, float]) -> tuple[float, ...]:
    """The comparison's rates; after them, if the smallest or the largest is the best, the one beyond it. One: none."""
    if not of.searches:
        return ()
    if not set(of.rates) <= set(results):
        return of.rates
    best = best_rate({rate: results[rate] for rate in of.rates})
    edges = dict(zip((min(of.rates), max(of.rates)), of.beyond, strict=True))
    return (*of.rates, edges[best]) if best in edges else of.rates


def chosen_rate(of: Comparison, results: dict[float, float]) -> float | None:
    """The best rate of a search so far; None before all of the comparison's rates are tried."""
    if not of.searches:
        return of.rates[0]
    return best_rate(results) if set(of.rates) <= set(results) else None


def _base(folder: Path, of: Comparison, overrides: Sequence[str], stop: Event) -> int:
    if (folder / "base" / "evaluation.json").exists():
        return 0
    keys = [f"experiment={of.experiment}", f"eval.samples={of.base_samples}", *overrides, f"run_dir={folder / 'base'}"]
    return _call([sys.executable, "-m", "expo_ray.evaluate", *keys], stop)


def _run(folder: Path, of: Comparison, method: Method, overrides: Sequence[str], stop: Event) -> int:
    """Searches and runs one method. Returns the exit code."""
    while not set(wanted := rates_to_search(of, results := search_results(folder, method))) <= set(results):
        print(f"{method.label}: search of the learning rate", file=sys.stderr, flush=True)
        if code := _call(search_command(folder, of, method, wanted, overrides), stop):
            return code
        if search_results(folder, method) == results:
            print(f"{method.label}: the search is not finished, its runs wait for it", file=sys.stderr)
            return 1
    rate = chosen_rate(of, results)
    assert rate is not None, "the search is finished"
    print(f"{method.label}: runs with learner.learning_rate={rate:g}", file=sys.stderr, flush=True)
    return _call(runs_command(folder, of, method, rate, overrides), stop)


def _call(command: list[str], stop: Event) -> int:
    """Runs a job to its end, or not at all after `stop`. Returns its exit code."""
    if stop.is_set():
        return STOPPED
    code = subprocess.Popen(command).wait()
    if code == STOPPED:
        stop.set()
    return code


if __name__ == "__main__":
    sys.exit(main())
