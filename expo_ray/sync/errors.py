"""What can go wrong in a sync. Every message is one sentence that names the worker and the phase."""


class SyncError(RuntimeError):
    """A rollout worker, or the transfer to it, failed."""


class SyncTimeout(SyncError):
    """A rollout worker, or a learner rank, did not answer within the bound."""


class SyncProofFailed(SyncError):
    """The engines do not hold the learners' weights after a sync that reported success."""
