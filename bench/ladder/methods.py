"""The ladder's methods in families by what they learn from, and the jobs that each needs."""

from dataclasses import dataclass

ANSWER, GOLD, NEITHER = "from the answer alone", "from gold solutions", "from neither"
FAMILIES = (ANSWER, GOLD, NEITHER)
RATES = (7.0e-5, 2.0e-4, 7.0e-4)
"""Learning rates of the search, the same for every method."""
SEARCH_SEED = 100
"""Its seed, which is none of the compared ones: problems and prompts of the search are others."""
SETTINGS = ("[5]", "[]")
"""`data.levels` of the two training settings; the search trains on all levels."""
SEEDS = (0, 1, 2)
MINUTES = 3.4
"""Of one job on two free cores: 18 jobs took 61 minutes (docs/results/ladder.md)."""


@dataclass(frozen=True)
class Method:
    """One row of the tables."""

    name: str
    """Its folder."""
    label: str
    family: str
    overrides: tuple[str, ...]


METHODS = (
    Method("exp_grpo", "ExP-GRPO", ANSWER, ("algo=exp_grpo",)),
    Method("exp_dpo", "ExP-DPO", ANSWER, ("algo=exp_dpo",)),
    Method("opsd", "OPSD", ANSWER, ("algo=opsd",)),
    Method("hdpo", "HDPO", ANSWER, ("algo=hdpo",)),
    Method("nurl", "NuRL", ANSWER, ("algo=nurl",)),
    Method("verifree", "VeriFree", ANSWER, ("algo=verifree",)),
    Method("ravr", "RAVR", ANSWER, ("algo=ravr", "rollout.explanations_per_prompt=4")),
    Method("sft_gt_grpo", "SFT-GT-CoT", GOLD, ("algo=sft_gt_grpo",)),
    Method("sft_then_rl", "SFT-then-RL", GOLD, ("algo=grpo", "trainer.sft_steps=20")),
    Method("luffy", "LUFFY", GOLD, ("algo=luffy",)),
    Method("pope", "POPE", GOLD, ("algo=pope",)),
    Method("dpo_gt", "DPO-GT", GOLD, ("algo=dpo_gt",)),
    Method("grpo", "GRPO", NEITHER, ("algo=grpo",)),
    Method("maxrl", "MaxRL", NEITHER, ("algo=grpo", "algo.advantage=maxrl")),
)


JOBS = len(RATES) + len(SEEDS) * len(SETTINGS)
"""Of one method: its search and its compared runs."""
