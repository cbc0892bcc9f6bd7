"""Prompts: the free and the answer-conditioned one, for chat models, base models and the embedded world."""

from expo_ray.prompts.builder import PromptBuilder

__all__ = ["PromptBuilder"]
