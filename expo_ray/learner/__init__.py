"""Learner actors, one DeepSpeed rank each: they sum an algorithm's per-token losses and update the policy."""
