"""Verifier: says of each response whether its answer is right, or that it could not tell.

`actor` is what the driver starts; `pool` runs the killable processes behind it; `tasks` choose how an answer
is found and compared; `reward` turns verdicts into rewards. See docs/verifier.md.
"""
