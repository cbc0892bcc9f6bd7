"""The free and the answer-conditioned prompt, for chat models, base models and the toy task."""

from expo_ray.prompts.builder import PromptBuilder

__all__ = ["PromptBuilder"]
