"""The GPU bench plans without a card, and reads its figures from a run's metrics."""

import json
import statistics

import pytest

from bench import gpu
from expo_ray.config.compose import compose_config
from expo_ray.preflight.values import check_config


def test_a_dry_run_plans_one_shared_card_and_names_every_part(capsys):
    assert gpu.main(["--dry-run", "trainer.prompts_per_step=16"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 GPUs" in printed and "colocated" in printed and "16 prompts" in printed
    for part in ("training: ", "sampling: ", "copy: "):
        assert part in printed


def test_the_sampling_part_is_a_run_that_passes_the_checks(tmp_path):
    overrides = gpu.commands([], tmp_path)["sampling"][4:]
    plan = check_config(compose_config([*overrides, "dry_run=true"]), training=False)
    assert plan.gpus == 1


def test_figures_are_medians_of_the_measured_steps(tmp_path):
    steps = [{"time/update": float(i), "sync/bytes": 8.0, "update/mfu": None if i == 3 else i / 10} for i in range(7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    found = gpu.training_figures(tmp_path)
    assert found["time/update"] == statistics.median(range(gpu.UNMEASURED, 7))
    assert found["update/mfu"] == pytest.approx(statistics.median([0.2, 0.4, 0.5, 0.6]))
    assert found["sync/bytes"] == 8 and "mismatch/max" not in found
