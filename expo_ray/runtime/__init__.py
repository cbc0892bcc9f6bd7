"""What every process of a run shares: its log, its waits, its Ray node, its journal and its spans."""
