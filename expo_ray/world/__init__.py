"""The toy task: generated problems, their tokenizer, and a small base model that ships with the package."""
