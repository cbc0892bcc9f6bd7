"""Made-up run folders for the tests of the ladder's tables and of its runner."""

import copy
import json
from functools import cache

from omegaconf import DictConfig, OmegaConf

from expo_ray.config.compose import compose_config

PROBLEMS = {"1": 2, "5": 4, "all": 6}


@cache
def saved_config(*overrides: str) -> DictConfig:
    """A run's configuration, as it is read from its folder. Reading it takes long: change a copy of it."""
    return OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(compose_config(list(overrides)))))


def evaluation(values: dict[str, float], samples: int = 4) -> dict:
    """pass@k that grows to its value at k = samples."""
    found = {level: {str(k): value * k / samples for k in range(1, samples + 1)} for level, value in values.items()}
    return {"samples": samples, "problems": PROBLEMS, "pass_at_k": found}


def values_of(level_5: float, level_1: float = 1.0) -> dict[str, float]:
    return {"1": level_1, "5": level_5, "all": (2 * level_1 + 4 * level_5) / 6}


def make_run(folder, algo, seed, level_5, level_1=1.0, levels=(5,), finished=True, steps_without=0, **settings):
    """A run folder of two steps that reached these values of pass@4 after the last, and half of level 5 after one."""
    folder.mkdir(parents=True)
    config = copy.deepcopy(saved_config("experiment=ladder", "trainer.steps=2"))
    changes = {"algo.name": algo, "seed": seed, "data.levels": list(levels), "run_dir": str(folder)}
    for key, value in (changes | settings).items():
        OmegaConf.update(config, key, value)
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "plan.txt").write_text("run x\nresources   a test: 2 cores\n")
    final = evaluation(values_of(level_5, level_1))
    half = evaluation(values_of(level_5 / 2, level_1))
    lines = [{"steps_done": 1} | half, {"steps_done": 2} | final]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [{"step": i} | ({"update/gradient_norm": 0.1} if i >= steps_without else {}) for i in range(2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    (folder / "summary.json").write_text(json.dumps({"finished": finished, "evaluation": final if finished else None}))


def cells(page: str, row: str) -> list[list[str]]:
    """The cells of every row of that name, in the order of the tables."""
    return [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in page.splitlines() if line.startswith(f"| {row} |")
    ]
