"""Searches tasks that a small language model can explain when it is told the answer, and cannot solve freely."""
