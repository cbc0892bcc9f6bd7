"""The algorithms: what is trained on (driver side, no torch) and the loss of it (learner side, torch)."""

from expo_ray.algorithms.base import Algorithm, make_algorithm

__all__ = ["Algorithm", "make_algorithm"]
