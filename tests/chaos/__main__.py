"""make chaos N=100 SEED=0: kills N processes of a run on the toy task; it must end as an undisturbed one."""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.chaos.compare import assert_same_run, assert_whole_checkpoints
from tests.chaos.harness import Chaos
from tests.chaos.plan import Kill, plan_kills

SAMPLES = 4


def overrides(steps: int) -> list[str]:
    """A small run with two engines and two learner ranks."""
    return [
        "experiment=demo",
        f"trainer.steps={steps}",
        "trainer.prompts_per_step=8",
        f"rollout.samples_per_prompt={SAMPLES}",
        "rollout.workers=2",
        "trainer.checkpoint_every=2",
        "trainer.eval_every=5",
        "trainer.max_restarts=1000000",
        "eval.max_problems=2",
        "eval.before=false",
        "algo.properties_every=3",
        "algo.explanation_refresh_steps=3",
        "logging.trackers=[]",
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos_"))
    began = time.monotonic()
    chaos = run(folder, given.kills, given.seed)
    print(table(chaos))
    print(
        f"{len(chaos.made)} kills, {chaos.starts} starts, {time.monotonic() - began:.0f} s: the same run, bit for bit"
    )
    print(folder)


def run(folder: Path, kills: int, seed: int) -> Chaos:
    """An undisturbed run and one under kills; raises where they differ."""
    steps = max(12, 2 * kills)
    if not (folder / "undisturbed" / "summary.json").exists():
        print(f"an undisturbed run of {steps} steps: {folder / 'undisturbed'}", flush=True)
        Chaos(overrides(steps), folder / "undisturbed", []).run()
    print(f"the same run under {kills} kills: {folder / 'disturbed'}", flush=True)
    chaos = Chaos(overrides(steps), folder / "disturbed", plan_kills(kills, seed), seed)
    chaos.run()
    assert_same_run(folder / "disturbed", folder / "undisturbed", steps, SAMPLES)
    assert_whole_checkpoints(folder / "disturbed", folder / "undisturbed")
    return chaos


def table(chaos: Chaos) -> str:
    """How long the run took to complete a step after a kill, by target and phase."""
    found: dict[Kill, list[float]] = defaultdict(list)
    for made in chaos.made:
        found[made.kill].append(made.recovered_s)
    rows = [
        f"{kill.target:<9} in {kill.phase:<11} {len(times)} x, next step after {min(times):.1f} to {max(times):.1f} s"
        for kill, times in sorted(found.items(), key=lambda item: (item[0].target, item[0].phase))
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
