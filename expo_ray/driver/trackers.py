"""Where a run's scalars are shown: accelerate's trackers, Prometheus and the terminal."""

import logging
import queue
import re
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from expo_ray.config.schema import Config
from expo_ray.runtime.journal import Events
from expo_ray.runtime.waits import Deadline

CLOSE_S = 120.0
"""Bound on the end of all trackers together, which may still be sending."""
MOST_WAITING = 10_000
LONGEST_SETTING = 1000
PLAIN_NAMES = ("mlflow", "swanlab")
"""Trackers that take letters, digits and a few signs in the names of metrics."""


class Tracker(Protocol):
    """Shows scalars that are also in metrics.jsonl."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None:
        """Asks it to end, without waiting."""

    def wait(self, deadline: Deadline) -> None:
        """Waits until it has ended, but not for ever."""


def close_all(trackers: Sequence[Tracker]) -> None:
    """Ends all trackers at the same time, within CLOSE_S."""
    deadline = Deadline(CLOSE_S)
    for tracker in trackers:
        tracker.close()
    for tracker in trackers:
        tracker.wait(deadline)


class BackgroundTracker:
    """Shows scalars through one of accelerate's trackers, which a thread starts, feeds and ends.

    So a service that is slow or gone costs no step and ends no run. What fails is an event at the first failure, and a
    count at the end; the records themselves are in metrics.jsonl.

    Args:
        name: of the tracker, in `logging.trackers`.
        begin: starts accelerate's tracker (`tracker_of`).
        events: the run's.
    """

    def __init__(self, name: str, begin: Callable[[], Any], events: Events) -> None:
        self.name, self._begin, self._events = name, begin, events
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._asked = self._shown = 0
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Hands one record to the thread; never waits."""
        self._asked += 1
        if self.name in PLAIN_NAMES:
            values = {re.sub(r"[^\w./ -]", "_", name): value for name, value in values.items()}
        if self._waiting.qsize() >= MOST_WAITING:
            self._failed(f"it is {MOST_WAITING} records behind")
        else:
            self._waiting.put((step, {name: float(value) for name, value in values.items()}))

    def close(self) -> None:
        """Asks the thread to end once everything is shown."""
        self._waiting.put(None)

    def wait(self, deadline: Deadline) -> None:
        """Waits until everything is shown, or the deadline passes; notes how many records are missing."""
        self._thread.join(deadline.left)
        if self._thread.is_alive():
            self._failed(f"it did not end within {deadline.seconds:.0f} s")
        if missing := self._asked - self._shown:
            sentence = f"{self.name} has not shown {missing} of {self._asked} records ({self._reason})"
            self._events.note("tracker", f"{sentence}; metrics.jsonl has all", tracker=self.name, missing=missing)

    def _run(self) -> None:
        tracker: Any = None
        try:
            tracker = self._begin()
        except Exception as error:  # whatever a service's client raises must not end the run
            self._failed(f"it did not start: {_words(error)}")
        while (record := self._waiting.get()) is not None:
            if tracker is None:
                continue
            step, values = record
            try:
                tracker.log(values, step=step)
                self._shown += 1
            except Exception as error:
                self._failed(f"step {step}: {_words(error)}")
        if tracker is not None:
            try:
                tracker.finish()
            except Exception as error:
                self._failed(f"it did not end: {_words(error)}")

    def _failed(self, reason: str) -> None:
        if not self._reason:
            self._reason = reason
            self._events.note("tracker", f"{self.name}: {reason}; the run goes on", tracker=self.name)


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def tracker_of(name: str, config: Config, folder: Path, first_step: int, settings: dict[str, Any]) -> Any:
    """Starts one of accelerate's trackers (accelerate.tracking) and gives it the run's settings.

    Args:
        name: a choice of `logging.trackers`.
        config: the run's configuration.
        folder: the run folder.
        first_step: TensorBoard's events from this step on are removed.
        settings: the configuration, flat.
    """
    from accelerate import tracking

    # accelerate's own logger, and its rule that one of many processes tracks, set up torch's process groups by the
    # environment, where a cluster's launcher may have left a size. This is the only process that tracks.
    tracking.logger = logging.getLogger(tracking.__name__)
    project, run = config.logging.project, f"{config.run_name}/{folder.name}"
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": str(folder), "purge_step": first_step},
        # Of a sweep's jobs in one process, one may have left its run open, to which this one's records would go.
        "wandb": {"run_name": project, "name": run, "dir": str(folder), "reinit": "finish_previous"},
        "mlflow": {"experiment_name": project, "run_name": run},
        "trackio": {"run_name": project, "name": run},
        "swanlab": {"run_name": project, "experiment_name": run, "logdir": str(folder / "swanlog")},
    }
    tracker = tracking.LOGGER_TYPE_TO_CLASS[name](**arguments[name])
    tracker.main_process_only = False
    tracker.start()
    if name != "tensorboard":  # which would show them as another run
        plain = (bool, int, float, type(None))
        shown = {k: v if isinstance(v, plain) else str(v)[:LONGEST_SETTING] for k, v in settings.items()}
        tracker.store_init_configuration(shown)
    return tracker


class PrometheusTracker:
    """Sets gauges `ray_expo_ray_<metric>`, tagged with the run's name, in Ray's own exporter (ray.util.metrics)."""

    def __init__(self, run: str) -> None:
        self._run = _ascii(run)
        self._gauges: dict[str, Any] = {}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in {"step": float(step), **values}.items():
            self._gauge(name).set(value, tags={"run": self._run})

    def close(self) -> None:
        """Does nothing: Ray's exporter keeps the last values until Ray ends."""

    def wait(self, deadline: Deadline) -> None:
        """Does nothing."""

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            from ray.util.metrics import Gauge

            plain = re.sub(r"[^a-zA-Z0-9_]", "_", f"expo_ray_{name}")
            self._gauges[name] = Gauge(plain, description=_ascii(name), tag_keys=("run",))
        return self._gauges[name]


def _ascii(text: str) -> str:
    """The text as Ray's exporter takes it: other letters raise there, as escapes (\\xe4) they do not."""
    return text.encode("ascii", "backslashreplace").decode()


class ProgressTracker:
    """Shows one live line on standard error: step, reward, pass rate by level, tokens/s, time left.

    If standard error is not a terminal, it prints a plain line after each tenth of the run instead.
    """

    def __init__(self, title: str, first_step: int, steps: int) -> None:
        self.title, self.steps = title, steps
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=steps, completed=first_step, state="")
        self._progress.start()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if "time/step" not in values:  # an evaluation, not a step
            return
        state = _state(values)
        self._progress.update(self._task, completed=step + 1, state=state)
        every = max(1, self.steps // 10)
        if not self._console.is_terminal and ((step + 1) % every == 0 or step + 1 == self.steps):
            print(f"{self.title} step {step + 1}/{self.steps}  {state}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._progress.stop()

    def wait(self, deadline: Deadline) -> None:
        """Does nothing."""


def _state(values: dict[str, float]) -> str:
    levels = {name.rsplit("_", 1)[-1]: value for name, value in values.items() if name.startswith("pass_rate/level_")}
    by_level = " ".join(f"L{level} {value:.0%}" for level, value in sorted(levels.items()))
    if "reward/mean" in values:
        score = f"reward {values['reward/mean']:.2f}  {by_level}"
    else:  # no completion has a reward; some algorithms sample none
        score = f"loss {values['loss/total']:.3g}" if "loss/total" in values else "no update"
    return f"{score}  {values['tokens/per_second']:.0f} tok/s"


def make_trackers(
    config: Config, folder: Path, first_step: int, settings: dict[str, Any], events: Events
) -> list[Tracker]:
    """The trackers that `logging` asks for."""
    if config.logging.trackers:
        import accelerate.tracking  # noqa: F401  here, before several threads do
    trackers: list[Tracker] = [
        BackgroundTracker(name, partial(tracker_of, name, config, folder, first_step, settings), events)
        for name in config.logging.trackers
    ]
    if config.logging.prometheus:
        trackers.append(PrometheusTracker(f"{config.run_name}/{folder.name}"))
    if config.logging.progress:
        title = f"{config.run_name}/{config.algo.name}"
        trackers.append(ProgressTracker(title, first_step, config.trainer.steps))
    return trackers
