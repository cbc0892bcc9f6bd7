"""How many jobs run at once: each takes the cores, memory and GPUs that its plan asks for, while there are some."""

import math
from dataclasses import dataclass, field

from expo_ray.config.plan import Plan


@dataclass(frozen=True)
class Share:
    """What one job has to itself."""

    cores: tuple[int, ...]
    """Numbers of the cores."""
    gpus: tuple[int, ...]
    """Numbers of the cards."""
    memory_gib: float


@dataclass
class Room:
    """What is free.

    Args:
        cores: numbers of the free cores.
        gpus: numbers of the free cards.
        memory_gib: free host memory.
        max_jobs: at most so many jobs at once; 0: as many as fit.
    """

    cores: list[int]
    gpus: list[int]
    memory_gib: float
    max_jobs: int = 0
    taken: list[Share] = field(default_factory=list)

    def take(self, plan: Plan) -> Share | None:
        """A share for a job; None where it has to wait for others. A job alone gets all there is if it asks for more.

        Where the memory is not known before the model is loaded, the job is taken to need all of it.
        """
        if self.max_jobs and len(self.taken) >= self.max_jobs:
            return None
        cores, gpus = math.ceil(plan.cores), plan.gpus
        memory = self.memory_gib if plan.host_memory_gib is None else plan.host_memory_gib
        fits = cores <= len(self.cores) and gpus <= len(self.gpus) and memory <= self.memory_gib
        if plan.host_memory_gib is None and self.taken:
            fits = False
        if not fits and self.taken:
            return None
        share = Share(tuple(self.cores[:cores]), tuple(self.gpus[:gpus]), memory)
        self.cores, self.gpus = self.cores[cores:], self.gpus[gpus:]
        self.memory_gib -= memory
        self.taken.append(share)
        return share

    def give_back(self, share: Share) -> None:
        """The job of this share has ended."""
        self.taken.remove(share)
        self.cores = sorted([*self.cores, *share.cores])
        self.gpus = sorted([*self.gpus, *share.gpus])
        self.memory_gib += share.memory_gib
