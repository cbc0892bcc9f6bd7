"""The ladder's methods in families by what they learn from, and the jobs that each needs."""

from dataclasses import dataclass

ANSWER, GOLD, NEITHER = "from the answer alone", "from gold solutions", "from neither"
FAMILIES = (ANSWER, GOLD, NEITHER)


@dataclass(frozen=True)
class Method:
    """One row of the tables."""

    name: str
    """Its folder."""
    label: str
    family: str
    overrides: tuple[str, ...]


KEEPS_ALL = "algo.dynamic_sampling=none"
"""Of methods that have no use for the key, where a recipe sets it."""
NO_KL = "algo.kl_conditioned_coef=0"
FORWARD = "algo.distill_divergence=forward_kl"
METHODS = (
    Method("exp_grpo", "ExP-GRPO", ANSWER, ("algo=exp_grpo",)),
    Method("exp_grpo_alone", "ExP-GRPO without conditioned KL", ANSWER, ("algo=exp_grpo", NO_KL)),
    Method("exp_dpo", "ExP-DPO", ANSWER, ("algo=exp_dpo", KEEPS_ALL)),
    Method("opsd", "OPSD", ANSWER, ("algo=opsd", KEEPS_ALL)),
    Method("opsd_forward", "OPSD with forward KL", ANSWER, ("algo=opsd", FORWARD, KEEPS_ALL)),
    Method("hdpo", "HDPO", ANSWER, ("algo=hdpo", NO_KL)),
    Method("hdpo_kl", "HDPO with forward and conditioned KL", ANSWER, ("algo=hdpo", FORWARD)),
    Method("nurl", "NuRL", ANSWER, ("algo=nurl",)),
    Method("verifree", "VeriFree", ANSWER, ("algo=verifree", KEEPS_ALL)),
    Method("ravr", "RAVR", ANSWER, ("algo=ravr", "rollout.explanations_per_prompt=4", KEEPS_ALL)),
    Method("sft_gt_grpo", "SFT-GT-CoT", GOLD, ("algo=sft_gt_grpo",)),
    Method("sft_then_rl", "SFT-then-RL", GOLD, ("algo=grpo", "trainer.sft_steps=20")),
    Method("sft_then_rl_40", "SFT-then-RL with 40 steps of SFT", GOLD, ("algo=grpo", "trainer.sft_steps=40")),
    Method("luffy", "LUFFY", GOLD, ("algo=luffy",)),
    Method("pope", "POPE", GOLD, ("algo=pope",)),
    Method("dpo_gt", "DPO-GT", GOLD, ("algo=dpo_gt", KEEPS_ALL)),
    Method("grpo", "GRPO", NEITHER, ("algo=grpo",)),
    Method("maxrl", "MaxRL", NEITHER, ("algo=grpo", "algo.advantage=maxrl")),
)


@dataclass(frozen=True)
class Comparison:
    """Methods side by side on one task."""

    title: str
    about: str
    """A sentence of the page."""
    experiment: str
    rates: tuple[float, ...]
    """Learning rates of the search, the same for every method; one rate needs no search."""
    beyond: tuple[float, ...]
    """A smaller and a larger rate, tried by a method that is best at the smallest or the largest of `rates`."""
    search_seed: int
    """Which is none of `seeds`: problems and prompts of the search are others."""
    settings: tuple[str, ...]
    """`data.levels` of the training settings; the search trains on all levels."""
    base_samples: int
    """`eval.samples` of the base model's evaluation."""
    minutes: float
    """Of one job on one free core."""
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def searches(self) -> bool:
        """Whether the learning rate is searched."""
        return len(self.rates) > 1

    @property
    def jobs(self) -> int:
        """Of one method: its search, as long as no rate beyond is tried, and its compared runs."""
        return len(self.rates) * self.searches + len(self.seeds) * len(self.settings)


COMPARISONS = {
    "toy": Comparison(
        title="The ladder of methods, in families",
        about="Made by `make ladder` on the toy task ([toy_task.md](../toy_task.md)). *Conditioned KL* is "
        "`algo.kl_conditioned_coef=1`, which keeps the policy near the base on prompts that show the answer: the "
        "recipe sets it for ExP-GRPO, and its paper does not have it. HDPO is shown as published, and with it.",
        experiment="ladder",
        rates=(7.0e-5, 2.0e-4, 7.0e-4),
        beyond=(2.0e-5, 2.0e-3),
        search_seed=100,
        settings=("[5]", "[]"),
        base_samples=64,
        minutes=2.6,
    ),
    "words": Comparison(
        title="A small language model on problems in words",
        about="Made by `make ladder COMPARISON=words`: SmolLM2-135M-Instruct after the warm-up of "
        "[real_model.md](real_model.md), the base here, learns the level `digit_code/2` with adapters. "
        "*Conditioned KL* is `algo.kl_conditioned_coef=1`, which ExP-GRPO has here and not in its paper.",
        experiment="smollm2_135m_words",
        rates=(5.0e-4,),
        beyond=(),
        search_seed=100,
        settings=("[]",),
        base_samples=8,
        minutes=25.0,
    ),
}
