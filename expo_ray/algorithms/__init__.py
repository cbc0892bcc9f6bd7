"""The algorithms: what is trained on (driver side, no torch) and the loss of it (learner side, torch)."""

from expo_ray.algorithms.base import Algorithm
from expo_ray.config.schema import Config

__all__ = ["Algorithm", "make_algorithm"]


def make_algorithm(config: Config) -> Algorithm:
    """The algorithm that `config.algo.name` names. Raises ValueError for an unknown name."""
    from expo_ray.algorithms.exp_dpo import DpoGt, ExpDpo
    from expo_ray.algorithms.exp_grpo import ExpGrpo, ExplanationSft, SftGtGrpo
    from expo_ray.algorithms.grpo import Grpo

    known = {cls.name: cls for cls in (Grpo, ExpGrpo, SftGtGrpo, ExpDpo, DpoGt, ExplanationSft)}
    if config.algo.name not in known:
        raise ValueError(f"algo.name={config.algo.name}: expected one of {', '.join(known)}")
    return known[config.algo.name](config)
