"""Checkpoints: complete or not there, checked by content when read, and found again."""
