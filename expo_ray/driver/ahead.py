"""Groups for the loop: sampled when they are asked for, or up to `trainer.async_steps` steps ahead, beside the update.

With k steps ahead the groups of step s are begun when the weights have had s - k updates, not fewer: that is the
bound on staleness. A weight sync does not wait for them; what is under way goes on with the new weights
(expo_ray.rollout.engine_loop). Each step's prompts are a function of its number, so no prompt is lost or used twice.
"""

from concurrent.futures import Future, ThreadPoolExecutor

from expo_ray.config.schema import Config
from expo_ray.driver.collect import Collector
from expo_ray.driver.record import StepRecord
from expo_ray.messages import Group

Sampled = tuple[list[Group], StepRecord]


class Ahead:
    """Args:
    config: the run's configuration.
    collector: samples and judges one step's groups.
    """

    def __init__(self, config: Config, collector: Collector) -> None:
        self.steps_ahead, self.last = config.trainer.async_steps, config.trainer.steps
        self.collector = collector
        self._sampler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") if self.steps_ahead else None
        self._begun: dict[int, Future[Sampled]] = {}

    def groups(self, step: int, record: StepRecord) -> list[Group]:
        """The step's groups; with steps ahead, the next steps' sampling is begun as well.

        Raises:
            Whatever the sampling raised (expo_ray.driver.collect).
        """
        if self._sampler is None:
            groups = self.collector.groups(step, record)
        else:
            self._begin(step)
            with record.phase("wait"):
                groups, beside = self._begun.pop(step).result()
            record.beside(beside)
        self.collector.lengths.learn(groups)
        for later in range(step + 1, min(step + 1 + self.steps_ahead, self.last)):
            self._begin(later)
        return groups

    def settle(self) -> None:
        """Waits until nothing is being sampled, so that the engines are free; what was sampled is kept."""
        for future in list(self._begun.values()):
            future.exception()

    def close(self) -> None:
        """Drops what was sampled ahead; sampling under way is waited for."""
        if self._sampler is not None:
            self._sampler.shutdown(wait=True, cancel_futures=True)

    def _begin(self, step: int) -> None:
        if step not in self._begun and self._sampler is not None:
            self._begun[step] = self._sampler.submit(self._sample, step)

    def _sample(self, step: int) -> Sampled:
        record = StepRecord(step)
        return self.collector.groups(step, record), record
