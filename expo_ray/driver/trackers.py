"""Where a run's scalars are shown: TensorBoard, Prometheus, Weights & Biases, and the terminal."""

import re
import sys
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from expo_ray.config.errors import ConfigError
from expo_ray.config.schema import Config


class Tracker(Protocol):
    """Shows scalars that are also in metrics.jsonl."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Writes event files to `<run folder>/tensorboard`."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Logs to one run of a Weights & Biases project."""

    def __init__(self, project: str, folder: Path, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"logging.wandb_project={project}: the package wandb is not installed; pip install wandb"
            ) from error
        self._run = wandb.init(project=project, name=folder.name, dir=str(folder), config=settings)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class PrometheusTracker:
    """Sets gauges `ray_expo_ray_<metric>`, tagged with the run's name, in Ray's own exporter (ray.util.metrics)."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Any] = {}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in {"step": float(step), **values}.items():
            self._gauge(name).set(value, tags={"run": self._run})

    def close(self) -> None:
        """Does nothing: Ray's exporter keeps the last values until Ray ends."""

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            from ray.util.metrics import Gauge

            plain = re.sub(r"[^a-zA-Z0-9_]", "_", f"expo_ray_{name}")
            self._gauges[name] = Gauge(plain, description=name, tag_keys=("run",))
        return self._gauges[name]


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


def _state(values: dict[str, float]) -> str:
    levels = {name.rsplit("_", 1)[-1]: value for name, value in values.items() if name.startswith("pass_rate/level_")}
    by_level = " ".join(f"L{level} {value:.0%}" for level, value in sorted(levels.items()))
    if "reward/mean" in values:
        score = f"reward {values['reward/mean']:.2f}  {by_level}"
    else:  # no completion has a reward; some algorithms sample none
        score = f"loss {values['loss/total']:.3g}" if "loss/total" in values else "no update"
    return f"{score}  {values['tokens/per_second']:.0f} tok/s"


def make_trackers(config: Config, folder: Path, first_step: int, settings: dict[str, Any]) -> list[Tracker]:
    """The trackers that `logging` asks for."""
    trackers: list[Tracker] = []
    if config.logging.tensorboard:
        trackers.append(TensorBoardTracker(folder, first_step))
    if config.logging.prometheus:
        trackers.append(PrometheusTracker(f"{config.run_name}/{folder.name}"))
    if config.logging.wandb_project:
        trackers.append(WandbTracker(config.logging.wandb_project, folder, settings))
    if config.logging.progress:
        title = f"{config.run_name}/{config.algo.name}"
        trackers.append(ProgressTracker(title, first_step, config.trainer.steps))
    return trackers
