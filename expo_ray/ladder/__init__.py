"""The ladder of methods on the embedded world: finished sweeps in, tables, figures and a page out."""
