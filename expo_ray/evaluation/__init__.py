"""Evaluation: pass@k by level on held-out problems, in training and on its own."""
