"""The training command as the benchmarks run it: only for its step times."""

import os
import subprocess
import sys
from collections.abc import Sequence

RUN_S = 3600.0
STEPS_ONLY = (
    "trainer.checkpoint_every=0",
    "eval.before=false",
    "eval.samples=1",
    "eval.max_problems=1",
    "algo.properties_every=0",
    "algo.kl_conditioned_coef=0",
    "learner.learning_rate=1e-6",
    "logging.trackers=[]",
    "logging.progress=false",
)
"""No checkpoint, no properties, a minimal evaluation, and a policy that hardly changes."""


def train(arguments: Sequence[str]) -> None:
    """Runs `python -m expo_ray.train`.

    Raises:
        CalledProcessError: it failed.
        TimeoutExpired: it took more than an hour.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "expo_ray.train", *arguments], env=environment, check=True, timeout=RUN_S)
