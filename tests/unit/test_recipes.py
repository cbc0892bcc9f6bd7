"""The recipes of conf/experiment: each composes, is planned for every cluster that it names, and refuses the others."""

import re

import pytest

from expo_ray import entry
from expo_ray.config.compose import CONF, compose_config, groups
from expo_ray.config.errors import ConfigError
from expo_ray.preflight.estimate import CONTEXT_GIB, recomputes, resting_gib, step_duration
from expo_ray.preflight.model_folder import model_shape
from expo_ray.preflight.plan import plan_text
from expo_ray.preflight.values import check_config

CLUSTERS = [name for name in groups()["cluster"] if name.endswith("h100")]
ON_CPU = ("demo", "ladder", "smollm2_135m_words")
RECIPES = [name for name in groups()["experiment"] if name not in ON_CPU]


def meant_for(recipe: str) -> list[str]:
    text = (CONF / "experiment" / f"{recipe}.yaml").read_text()
    return re.findall(r"^# Meant for: (.*)$", text, re.MULTILINE)[0].split()


def planned(recipe: str, cluster: str):
    return check_config(compose_config([f"experiment={recipe}", f"cluster={cluster}", "dry_run=true"]))


def gib_on_card(plan, actor: str) -> float:
    """What the planner expects of an actor on a card; every part of it must be known."""
    parts = plan.actor(actor).memory.gpu
    assert parts and None not in parts.values()
    return sum(parts.values())


def test_the_recipes_of_the_project_are_there():
    assert {
        "math_l5_qwen2.5_3b",
        "math_full_qwen2.5_3b",
        "math_l5_llama3.2_3b",
        "gsm8k_qwen2.5_0.5b",
        "math_l5_qwen2.5_7b_lora",
    } == set(RECIPES)
    assert {"1xh100", "2xh100", "4xh100", "8xh100", "2x8xh100"} == set(CLUSTERS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_planned_for_every_cluster_that_it_names(recipe):
    clusters = meant_for(recipe)
    assert clusters and set(clusters) <= set(CLUSTERS)
    for cluster in clusters:
        plan = planned(recipe, cluster)
        card = plan.resources.gpu_memory_gib
        assert max(gib_on_card(plan, "learner"), gib_on_card(plan, "rollout")) <= card
        assert plan.gpus == plan.resources.gpus
        assert "GPU" in plan_text(plan) and "time " in plan_text(plan)


@pytest.mark.parametrize("model", [name for name in groups()["model"] if name != "toy"])
def test_a_model_of_the_project_is_planned_by_its_known_dimensions(model):
    more = [f"model={model}", "data=math_l5", "profile=gpu", "cluster=8xh100", "dry_run=true"]
    plan = check_config(compose_config(more))
    assert plan.shape == model_shape(plan.config.model.path) is not None and "size unknown" not in plan_text(plan)
    assert max(gib_on_card(plan, "learner"), gib_on_card(plan, "rollout")) <= plan.resources.gpu_memory_gib
    billions = re.search(r"_(\d+(?:\.\d+)?)b", model)
    assert billions and plan.shape.parameters / 1e9 == pytest.approx(float(billions[1]), rel=0.25)


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_card_is_shared_or_refused_with_that_remedy(recipe):
    plan = planned(recipe, "1xh100")
    assert plan.colocated and plan.gpus == 1
    apart = [f"experiment={recipe}", "cluster=1xh100", "dry_run=true", "cluster.placement=disaggregated"]
    with pytest.raises(ConfigError, match="ask for 2 GPUs, cluster=1xh100 has 1") as caught:
        check_config(compose_config(apart))
    remedy = str(caught.value).partition(": use ")[2].split(" or ")[0].split()
    assert remedy[0] == "cluster.placement=colocated"
    assert check_config(compose_config([*apart[:3], *remedy])).gpus == 1


def test_a_shared_card_must_hold_the_learner_beside_its_engine():
    recipe = ["experiment=math_l5_qwen2.5_3b", "cluster=1xh100", "dry_run=true"]
    with pytest.raises(ConfigError, match=r"besides the \d+ GiB that a learner rank keeps") as caught:
        check_config(compose_config([*recipe, "rollout.gpu_memory_utilization=0.6"]))
    remedy = str(caught.value).partition(": use ")[2].split(" or ")[0]
    assert remedy.startswith("rollout.gpu_memory_utilization=")
    plan = check_config(compose_config([*recipe, remedy]))
    kept = resting_gib(plan.config, plan.actor("learner").memory)
    assert kept + gib_on_card(plan, "rollout") <= plan.resources.gpu_memory_gib
    # 2 bytes a weight, and 12 for its master and two moments; gradients are freed after each update.
    assert kept == pytest.approx(14 * 3_085_938_688 / 2**30 + CONTEXT_GIB)


@pytest.mark.parametrize(
    "change, remedy",
    [
        ("rollout.workers=2", "use rollout.workers=1"),
        ("trainer.async_steps=1", "use trainer.async_steps=0"),
        ("rollout.tensor_parallel=2", "use rollout.tensor_parallel=1"),
        ("sync.backend=nccl", "use sync.backend=auto"),
        ("profile=cpu", "use cluster.placement=disaggregated"),
        ("cluster.rollout_resource=fast", "give both the same"),
    ],
)
def test_what_cannot_share_cards_is_refused(change, remedy):
    with pytest.raises(ConfigError, match=r"cluster\.placement=colocated") as caught:
        recipe = ["experiment=math_l5_qwen2.5_3b", "cluster=1xh100", "sync.digest_every=0", "dry_run=true"]
        check_config(compose_config([*recipe, change]))
    assert remedy in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_too_large_for_its_cards_is_refused():
    whole = ["experiment=math_l5_qwen2.5_7b_lora", "model.lora.rank=0", "cluster=2xh100", "dry_run=true"]
    with pytest.raises(ConfigError, match=r"a learner rank needs about \d+ GiB of GPU memory"):
        check_config(compose_config(whole))


def test_a_dry_run_prints_the_plan_and_downloads_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setattr("expo_ray.preflight.checks.check_hub", lambda config: pytest.fail("the hub was asked"))
    folder = tmp_path / "run"
    command = ["experiment=math_l5_qwen2.5_3b", "dry_run=true", "cluster=8xh100", f"run_dir={folder}"]
    entry.launch(entry.check_arguments(command), lambda checked, folder: pytest.fail("something was started"))
    printed = capsys.readouterr().out
    assert printed == (folder / "plan.txt").read_text()
    assert "8 of 8 GPUs" in printed and "assumed, not measured" in printed


def test_activations_are_computed_twice_only_where_a_card_is_too_small():
    again = {
        (recipe, cluster): planned(recipe, cluster).learner.gradient_checkpointing
        for recipe in ("math_l5_qwen2.5_3b", "gsm8k_qwen2.5_0.5b")
        for cluster in ("1xh100", "4xh100", "8xh100")
    }
    assert [cluster for (recipe, cluster), twice in again.items() if twice] == ["1xh100", "4xh100"]
    assert {recipe for (recipe, _), twice in again.items() if twice} == {"math_l5_qwen2.5_3b"}
    # Asked for, or on a card that is not known.
    asked = ["experiment=math_l5_qwen2.5_3b", "cluster=8xh100", "dry_run=true", "learner.gradient_checkpointing=true"]
    more = check_config(compose_config(asked))
    assert more.learner.gradient_checkpointing
    assert more.actor("learner").memory.gpu["activations"] < 3
    assert recomputes(planned("gsm8k_qwen2.5_0.5b", "1xh100").config, more.shape, card_gib=0)


def test_the_papers_settings():
    for recipe in RECIPES:
        config = compose_config([f"experiment={recipe}", "cluster=8xh100"])
        assert (config.algo.name, config.algo.beta) == ("exp_grpo", 0.04)
        assert (config.eval.samples, config.eval.temperature) == (4, 0.7)
        assert config.run_name == recipe
    assert compose_config(["experiment=math_full_qwen2.5_3b"]).data.levels == []
    assert compose_config(["experiment=math_l5_llama3.2_3b"]).data.levels == [5]
    assert compose_config(["experiment=math_l5_qwen2.5_7b_lora"]).model.lora.rank > 0


def test_the_documented_figures_are_the_planners():
    """The table of docs/recipes.md: GiB of a learner rank, seconds a step and hours of each recipe and cluster."""
    text = (CONF.parent / "docs" / "recipes.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert {(recipe, cluster) for recipe, cluster, *_ in rows} == {(r, c) for r in RECIPES for c in meant_for(r)}
    for recipe, cluster, learner, seconds, hours in rows:
        plan = planned(recipe, cluster)
        found = step_duration(plan.config, plan.shape)
        memory = gib_on_card(plan, "learner")
        assert found is not None
        told = (f"{memory:.0f}", f"{found.step:.0f}", f"{found.step * plan.config.trainer.steps / 3600:.1f}")
        assert told == (learner, seconds, hours), (recipe, cluster)


def test_the_time_of_a_step_by_hand():
    """Qwen2.5-3B on 8xh100: 144 sequences an engine in one wave; 6 operations a weight and token in the update."""
    plan = planned("math_l5_qwen2.5_3b", "8xh100")
    weights, found = 3_085_938_688, step_duration(plan.config, plan.shape)
    assert found is not None
    cache = (
        144 * (1024 + 512) * 2 * 36 * 2 * 128 * 2
    )  # sequences x mean context x (k and v) x layers x heads x size x bytes
    decode = (2 * weights + cache) / (0.6 * 3.35e12) + 0.005
    assert found.generate == pytest.approx(1024 * decode)
    assert found.update == pytest.approx(64 * 9 * 2048 * 6 * weights / (4 * 0.35 * 989e12))
    assert found.properties == pytest.approx(64 * 2 * 4 * 2048 * 2 * weights / (4 * 0.35 * 989e12) / 2)


def test_no_time_is_told_where_none_can_be_known():
    unknown = compose_config(["experiment=math_l5_qwen2.5_3b", "cluster=8xh100", "model.path=a/b"])
    assert step_duration(unknown, None) is None
    plan = check_config(compose_config(["experiment=demo", "profile=cpu", "cluster=cpu2", "dry_run=true"]))
    assert step_duration(plan.config, plan.shape) is None and "assumed" not in plan_text(plan)
