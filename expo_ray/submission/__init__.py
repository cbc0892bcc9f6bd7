"""Training as a job of a running Ray cluster."""
