"""Writes a run's checkpoints and removes those that need not be kept."""

import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from expo_ray.algorithms.base import Algorithm
from expo_ray.checkpoint.find import checkpoints_in
from expo_ray.checkpoint.manifest import Manifest, read_manifest, seal
from expo_ray.checkpoint.publish import write_card
from expo_ray.checkpoint.state import DriverState, Identity, record_lengths
from expo_ray.config.keys import as_settings
from expo_ray.config.schema import Config
from expo_ray.learner.group import LearnerGroup
from expo_ray.runtime.journal import Events

POLL_S = 0.2


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written. Earlier ones are unchanged."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """A checkpoint that is being written to `aside` and renamed to `final` once it is complete."""

    aside: Path
    final: Path
    done: int
    score: float | None
    began: float


class Checkpoints:
    """The checkpoints of one run, `step_000050` and so on (docs/run_folder.md).

    Args:
        config: the run's configuration.
        given: the same as the user gave it, for the model card: of an adapter, not its merged model.
        run_folder: the run folder; checkpoints go to its `checkpoints/`.
        learners: write their part.
        algorithm: its state is saved too.
        identity: identity of model and prompts.
        events: records each checkpoint.
    """

    def __init__(
        self,
        config: Config,
        given: Config,
        run_folder: Path,
        learners: LearnerGroup,
        algorithm: Algorithm,
        identity: Identity,
        events: Events,
    ) -> None:
        self.given = given
        self.config, self.run_folder, self.folder = config, run_folder, run_folder / "checkpoints"
        self.learners, self.algorithm, self.identity, self.events = learners, algorithm, identity, events
        self._last = time.monotonic()
        self._bytes = 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        for left in self.folder.glob(".step_*"):
            shutil.rmtree(left)

    def due(self, done: int) -> bool:
        """Whether trainer.checkpoint_every or trainer.checkpoint_minutes requires one after `done` steps."""
        trainer = self.config.trainer
        minutes = (time.monotonic() - self._last) / 60
        by_time = trainer.checkpoint_minutes > 0 and minutes >= trainer.checkpoint_minutes
        return by_time or (trainer.checkpoint_every > 0 and done % trainer.checkpoint_every == 0)

    def save(self, done: int, score: float | None, last: bool) -> None:
        """Writes the state after `done` steps. If that fails, the run continues with an event that says so.

        Args:
            done: number of updates that the policy has had.
            score: held-out pass@k of this policy; None if it was not evaluated.
            last: the run's last checkpoint: wait for it, and raise if it fails.

        Raises:
            CheckpointFailed: the last one could not be written.
            LearnersLost: a rank is gone.
        """
        self.settle()
        self._last = time.monotonic()
        draft = _Draft(
            self.folder / f".step_{done:06d}.partial", self.folder / f"step_{done:06d}", done, score, time.monotonic()
        )
        try:
            self._write(draft, background=self.config.trainer.checkpoint_async and not last)
        except (OSError, CheckpointFailed) as error:
            self._failed(draft, error)
            if last:
                raise CheckpointFailed(self._sentence(draft, error)) from error

    def settle(self) -> None:
        """Waits for a checkpoint that is being written in the background."""
        if self._pending is not None:
            self._pending.result(timeout=self.config.trainer.wait_s)
            self._pending = None

    def _write(self, draft: _Draft, background: bool) -> None:
        free = shutil.disk_usage(self.run_folder).free
        if free < self._bytes:
            raise CheckpointFailed(f"{free / 2**30:.2f} GiB are free, the last one took {self._bytes / 2**30:.2f} GiB")
        shutil.rmtree(draft.aside, ignore_errors=True)
        draft.aside.mkdir(parents=True)
        DriverState(
            steps_done=draft.done,
            algorithm=self.algorithm.state_dict(),
            records=record_lengths(self.run_folder),
            settings=as_settings(self.config),
            identity=self.identity,
        ).write(draft.aside)
        what = f"writing the checkpoint of step {draft.done}"
        problems = self.learners.all("save", what, str(draft.aside), background)
        _refuse(problems)
        if background:
            self._pending = self._pool.submit(self._finish_later, draft)
        else:
            self._finish(draft)

    def _finish_later(self, draft: _Draft) -> None:
        """In the background: waits for the ranks' files, then completes the checkpoint."""
        deadline = time.monotonic() + self.config.trainer.wait_s
        try:
            while None in (problems := self.learners.all("written", f"writing the checkpoint of step {draft.done}")):
                if time.monotonic() > deadline:
                    raise CheckpointFailed(f"it was not written within {self.config.trainer.wait_s:.0f} s")
                time.sleep(POLL_S)
            _refuse(problems)
            self._finish(draft)
        except (OSError, RuntimeError) as error:  # also a lost learner, which the main thread will notice itself
            self._failed(draft, error)

    def _finish(self, draft: _Draft) -> None:
        write_card(draft.aside / "policy", self.given, self.run_folder, draft.done)
        manifest = seal(draft.aside, draft.done, draft.score)
        if draft.final.exists():
            _remove(draft.final)
        os.rename(draft.aside, draft.final)
        self._bytes = manifest.bytes
        self._prune()
        self.events.note(
            "checkpoint",
            f"step {draft.done}: {draft.final}",
            show=False,
            steps_done=draft.done,
            bytes=manifest.bytes,
            seconds=round(time.monotonic() - draft.began, 3),
        )

    def _failed(self, draft: _Draft, error: Exception) -> None:
        shutil.rmtree(draft.aside, ignore_errors=True)
        self.events.note("skipped", self._sentence(draft, error), steps_done=draft.done)

    def _sentence(self, draft: _Draft, error: Exception) -> str:
        kept = checkpoints_in(self.folder)
        before = f"the newest one is {kept[-1]}" if kept else "there is none before it"
        reason = " ".join(str(error).split())
        return f"the checkpoint of step {draft.done} could not be written ({reason}); {before}"

    def _prune(self) -> None:
        """Removes all but the newest trainer.keep_checkpoints and the best trainer.keep_best."""
        found: list[tuple[Path, Manifest]] = []
        for path in checkpoints_in(self.folder):
            try:
                found.append((path, read_manifest(path)))
            except ValueError:
                continue  # damaged: kept, since `find` reports it
        scored = [(m.score, m.steps_done, path) for path, m in found if m.score is not None]
        best = [path for *_, path in sorted(scored, reverse=True)[: self.config.trainer.keep_best]]
        newest = [path for path, _ in found[-self.config.trainer.keep_checkpoints :]]
        for path, _ in found:
            if path not in newest and path not in best:
                _remove(path)


def _remove(checkpoint: Path) -> None:
    """Renames it first, so that one that is removed only in part does not look like a damaged one."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    os.rename(checkpoint, aside)
    shutil.rmtree(aside)


def _refuse(problems: list[list[str]]) -> None:
    flat = [problem for of_rank in problems for problem in of_rank]
    if flat:
        raise CheckpointFailed("; ".join(flat))
