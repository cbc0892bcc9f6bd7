"""Sweeps: many runs of one command, in turn, side by side on this machine, or as jobs of a Ray cluster."""
