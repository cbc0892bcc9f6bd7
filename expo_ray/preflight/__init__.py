"""Checks before anything heavy starts: model files, tokenizer, disk, placement. Imports no engine, takes seconds."""
