"""Checkpoints: written completely or not at all, verified when read, and found again on resume."""
