"""Weight sync: from the learners' ZeRO partitions into the rollout engines, with proof (docs/sync.md)."""
