"""The training command as the benches run it: for its step times, with nothing around the steps."""

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
    "logging.tensorboard=false",
    "logging.progress=false",
)
"""No checkpoint, no property, hardly an evaluation, and a policy that stays where it is."""


def train(arguments: Sequence[str]) -> None:
    """Runs `python -m expo_ray.train`.

    Raises:
        CalledProcessError, TimeoutExpired: it failed, or took more than an hour.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "expo_ray.train", *arguments], env=environment, check=True, timeout=RUN_S)
