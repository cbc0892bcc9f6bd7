"""The algorithms: each makes training batches (in the driver, torch-free) and computes their loss (in the learners)."""

from expo_ray.algorithms.base import Algorithm, WarmUp
from expo_ray.config.algorithms import algorithm_class
from expo_ray.config.schema import Config

__all__ = ["Algorithm", "make_algorithm"]


def make_algorithm(config: Config) -> Algorithm:
    """Creates the algorithm that `config.algo.name` names, with SFT before it if the run begins so.

    Raises:
        ConfigError: there is no such class, or it is not an Algorithm.
    """
    cls = algorithm_class(config.algo.name)
    assert issubclass(cls, Algorithm), f"{cls} has the facts of an algorithm but not its methods"
    return WarmUp(config, cls) if config.trainer.sft_steps else cls(config)
