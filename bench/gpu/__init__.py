"""Measures the pipeline on one GPU, in stages that each have a bound (docs/performance.md)."""
