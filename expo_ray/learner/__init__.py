"""Learner actors: one DeepSpeed rank each. They add up an algorithm's per-token losses and take the step."""
