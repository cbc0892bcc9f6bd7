"""Training as a job of a running Ray cluster: what travels there, requests with a bound, following a job to its end."""
