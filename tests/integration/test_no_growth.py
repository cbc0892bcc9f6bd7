"""Memory, open files, threads and the object store level off: once the run has warmed up, none has a slope."""

import numpy as np
import pytest

from tests.chaos.compare import lines
from tests.chaos.harness import Chaos

WARM, STEPS = 80, 220
SMALL = [
    "experiment=demo",
    f"trainer.steps={STEPS}",
    "trainer.prompts_per_step=2",
    "rollout.samples_per_prompt=2",
    "trainer.checkpoint_every=25",
    "trainer.eval_every=50",
    "eval.max_problems=2",
    "eval.before=false",
    "logging.usage_every=2",
    "logging.progress=false",
]


def slope(steps: np.ndarray, values: np.ndarray) -> float:
    """Theil and Sen's: the median of the slopes between all pairs, which single steps do not move."""
    first, second = np.triu_indices(len(steps), k=1)
    return float(np.median((values[second] - values[first]) / (steps[second] - steps[first])))


def test_a_slope_is_found_beneath_noise_and_jumps():
    steps = np.arange(WARM, STEPS, 2)
    values = 400 + 0.05 * steps + np.random.default_rng(0).normal(0, 1, len(steps))
    values[::7] += 30
    assert slope(steps, values) == pytest.approx(0.05, abs=0.015)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_grows(tmp_path):
    run = Chaos(SMALL, tmp_path / "run", [], bound_s=1800)
    run.run()
    found = [line for line in lines(run.folder / "metrics.jsonl") if "memory/driver_rss_mib" in line]
    names = sorted(name for name in found[0] if name.startswith("memory/"))
    assert len(names) == 3 * len(("driver", "rollout-0", "learner-0", "learner-1", "verifier-0")) + 1
    later = [line for line in found if line["step"] >= WARM]
    steps = np.array([line["step"] for line in later])
    report, grown = [], []
    for name in names:
        values = np.array([line[name] for line in later])
        middle, rise = float(np.median(values)), 100 * slope(steps, values)
        report.append(f"{name}: {found[0][name]:.1f} at first, {middle:.1f} later, {rise:+.2f} per hundred steps")
        # A learner's memory wanders by 1 % (it was measured); a leak of 0.1 MiB a step is more.
        slack = max(0.01 * middle, 2.0) if name.endswith("mib") else 2.0
        if rise > slack:
            grown.append(report[-1])
    print("\n".join(report))
    assert not grown
