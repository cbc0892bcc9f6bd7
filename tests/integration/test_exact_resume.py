"""A run that is killed and started again ends with the same metrics and the same weights, bit for bit."""

import pytest

from expo_ray.checkpoint.manifest import damage
from tests.chaos.compare import assert_same_run, lines
from tests.chaos.harness import Chaos
from tests.chaos.plan import Kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS, SAMPLES = 8, 4


def overrides(*more: str) -> list[str]:
    return [
        "experiment=demo",
        f"trainer.steps={STEPS}",
        "trainer.prompts_per_step=8",
        f"rollout.samples_per_prompt={SAMPLES}",
        "trainer.checkpoint_every=2",
        "trainer.eval_every=3",
        "eval.max_problems=2",
        "algo.properties_every=3",
        "logging.tensorboard=false",
        *more,
    ]


@pytest.mark.parametrize(
    "more",
    [
        ["learner.zero_stage=2", "algo.explanation_refresh_steps=3"],
        ["learner.zero_stage=3", "trainer.checkpoint_async=true"],
    ],
    ids=["zero2_stored_explanations", "zero3_async_checkpoints"],
)
def test_killed_three_times_and_resumed_it_ends_as_if_never_stopped(tmp_path, more):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Chaos(overrides(*more), whole, []).run()
    kills = [Kill("driver", "generate", 2), Kill("driver", "checkpoint", 3), Kill("driver", "update", 5)]
    chaos = Chaos(overrides(*more), killed, kills)
    chaos.run()
    assert chaos.starts == 1 + len(chaos.made) >= 4
    assert {made.kill.phase for made in chaos.made if made.hit} == {"generate", "checkpoint", "update"}
    resumed = [line["steps_done"] for line in lines(killed / "events.jsonl") if line["event"] == "resumed"]
    assert len(resumed) >= 2, "one written in the background may not have been there yet"
    assert set(resumed) <= {2, 4, 6}
    assert_same_run(killed, whole, STEPS, SAMPLES)
    left = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert left == sorted(path.name for path in (whole / "checkpoints").iterdir()), "no half-written one is left"
    assert all(damage(path) is None for path in (killed / "checkpoints").iterdir())
