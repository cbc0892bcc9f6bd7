"""Weight transfer between processes without GPUs: a vLLM weight-transfer backend over Gloo."""
