"""Reward functions: the user's own trusted code, called in actors of their own beside the verifier."""
