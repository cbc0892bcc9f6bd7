"""The same training steps here and in TRL's GRPOTrainer, side by side on one machine: `python -m bench.trl --help`."""
