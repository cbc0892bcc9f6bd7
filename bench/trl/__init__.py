"""The same training steps here and in TRL's GRPOTrainer on one machine: `python -m bench.trl --help`."""
