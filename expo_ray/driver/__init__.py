"""The driver: the training loop, the actors' lifetimes, and what a run leaves behind."""
