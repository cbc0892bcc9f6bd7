"""The embedded world: a procedural family of problems, its tokenizer and a small base model that ships."""
