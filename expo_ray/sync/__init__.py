"""Weight sync: sends the learners' weights to the rollout engines and proves that they arrived (docs/sync.md)."""
