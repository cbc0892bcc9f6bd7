"""Leaks: explanations that say they were given the answer. Trained on, they teach a claim about what was never told."""

from expo_ray.leaks.detector import mentions_given_answer

__all__ = ["mentions_given_answer"]
