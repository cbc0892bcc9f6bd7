"""Rollout workers: one vLLM engine each, sampling free completions and self-explanations."""
