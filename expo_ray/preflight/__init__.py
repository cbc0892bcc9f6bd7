"""Checks before anything heavy starts: settings, model files, data, disk, placement. Imports no engine."""
