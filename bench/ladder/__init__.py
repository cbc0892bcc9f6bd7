"""The experiment that compares the algorithms on the toy task: finished sweeps become a page."""
