"""Rollout workers: actors with one vLLM engine each, which sample free completions and self-explanations."""
