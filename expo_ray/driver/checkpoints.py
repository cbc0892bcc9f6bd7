"""Checkpoints: written aside and renamed, so that a half-written one is never found."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from expo_ray.algorithms.base import Algorithm
from expo_ray.learner.group import LearnerGroup

STATE_FILE = "driver.json"


class Checkpoints:
    """The checkpoints of one run, `step_000050` and so on, each holding:

    - `learner/`: DeepSpeed's shards of weights and optimizer;
    - `policy/`: the policy as a Hugging Face folder;
    - `driver.json`: steps done and what the algorithm remembers.

    Args:
        folder: where they lie.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, done: int, learners: LearnerGroup, algorithm: Algorithm) -> Path:
        """Writes the state after `done` steps and removes the oldest ones."""
        final = self.folder / f"step_{done:06d}"
        aside = self.folder / f".step_{done:06d}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        learners.all("save", f"writing the checkpoint of step {done}", str(aside))
        learners.all("export", f"exporting the policy of step {done}", str(aside / "policy"))
        state = {"steps_done": done, "algorithm": algorithm.state_dict()}
        (aside / STATE_FILE).write_text(json.dumps(state))
        shutil.rmtree(final, ignore_errors=True)
        os.rename(aside, final)
        for old in checkpoints_in(self.folder)[: -self.keep]:
            shutil.rmtree(old)
        return final


def checkpoints_in(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if (path / STATE_FILE).exists())


def restore(checkpoint: Path, learners: LearnerGroup, algorithm: Algorithm) -> int:
    """Loads a checkpoint into learners and algorithm.

    Returns:
        How many steps were done when it was written.
    """
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text())
    learners.all("load", f"loading {checkpoint}", str(checkpoint))
    algorithm.load_state_dict(state["algorithm"])
    return int(state["steps_done"])
