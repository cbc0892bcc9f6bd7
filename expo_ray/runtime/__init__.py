"""What every process of a run shares: logs, bounded waits, dispatch, the Ray node, the journal and spans."""
