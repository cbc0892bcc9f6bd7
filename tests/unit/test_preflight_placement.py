"""Placement: what cannot be placed is told, nothing that can be is refused (compared with trying every placement)."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folder import write_model

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError
from expo_ray.preflight.checks import check_context, check_placement
from expo_ray.preflight.placement import Bundle, packs
from expo_ray.preflight.plan import make_plan

GIB = 1 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def ray_node(cpus, gpus=0, memory=1000.0, alive=True, **custom):
    """One entry of ray.nodes(), as Ray 2.60 gives it; memory in GiB."""
    resources = {"CPU": float(cpus), "memory": 0.7 * memory * GIB, "object_store_memory": 0.3 * memory * GIB}
    resources |= {"node:10.0.0.1": 1.0, "node:__internal_head__": 1.0} | custom
    resources |= {"GPU": float(gpus), "accelerator_type:H100": 1.0} if gpus else {}
    return {"NodeID": "ab", "Alive": alive, "alive": alive, "NodeManagerHostname": "h", "Resources": resources}


def config_for(model, profile="gpu", **values):
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in values.items()]
    return compose_config([f"profile={profile}", "cluster.address=auto", f"model.path={model}", *overrides])


def placed(config, nodes, training=True):
    return check_placement(make_plan(config, training=training), nodes)


def refused(config, nodes, *words, training=True):
    with pytest.raises(ConfigError) as caught:
        placed(config, nodes, training)
    sentence = str(caught.value)
    assert all(word in sentence for word in words) and "\n" not in sentence, sentence
    return sentence


def possible(kinds, nodes):
    """Whether some assignment of every single bundle to a node fits: all of them are tried."""
    each = [bundle.needs for bundle in kinds for _ in range(bundle.count)]
    for places in itertools.product(range(len(nodes)), repeat=len(each)):
        left = [dict(node) for node in nodes]
        for place, needs in zip(places, each, strict=True):
            for name, need in needs.items():
                left[place][name] = left[place].get(name, 0.0) - need
        if all(value > -1e-9 for node in left for value in node.values()):
            return True
    return False


BUNDLES = st.builds(
    lambda count, cpus, gpus, pin: (count, {"CPU": cpus, "GPU": float(gpus)} | ({"pin": 0.001} if pin else {})),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 2),
    st.booleans(),
)
NODES = st.builds(
    lambda cpus, gpus, pin: {"CPU": float(cpus), "GPU": float(gpus)} | ({"pin": 1.0} if pin else {}),
    st.integers(0, 3),
    st.integers(0, 4),
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(BUNDLES, min_size=1, max_size=3), st.lists(NODES, min_size=1, max_size=3))
def test_the_search_finds_what_trying_everything_finds(kinds, nodes):
    found = [Bundle("rollout", count, needs) for count, needs in kinds]
    assert packs(found, nodes) == possible(found, nodes)


def test_a_layout_that_a_greedy_choice_would_miss(model):
    """Two engines of 2 cards and 3 ranks on nodes of 4 and 3: only 2+2 and 1+1+1 goes."""
    config = config_for(model, rollout__workers=2, rollout__tensor_parallel=2, learner__ranks=3)
    assert placed(config, [ray_node(16, 4), ray_node(16, 3)]).gpus == 7


def test_an_engine_is_not_spread_over_nodes(model):
    config = config_for(model, rollout__tensor_parallel=2, learner__ranks=2)
    sentence = refused(
        config, [ray_node(16, 1)] * 4, "rollout.tensor_parallel=2", "needs 2 GPUs on one node", "at most 1"
    )
    assert sentence.endswith("use rollout.tensor_parallel=1")
    placed(config_for(model, rollout__tensor_parallel=1, learner__ranks=2), [ray_node(16, 1)] * 4)


def test_cards_that_are_left_over_on_each_node_do_not_make_an_engine(model):
    config = config_for(model, rollout__workers=3, rollout__tensor_parallel=2, learner__ranks=3)
    placed(config, [ray_node(16, 3)] * 3)
    config = config_for(model, rollout__workers=4, rollout__tensor_parallel=2, learner__ranks=1)
    sentence = refused(config, [ray_node(16, 3)] * 3, "rollout.workers=4", "room for 3 of them", "3 with 3")
    for remedy in sentence.rpartition("use ")[2].split(" or "):
        values = dict(part.replace(".", "__").split("=") for part in remedy.split())
        wanted = {"rollout__workers": 4, "rollout__tensor_parallel": 2, "learner__ranks": 1} | values
        placed(config_for(model, **wanted), [ray_node(16, 3)] * 3)


def test_too_few_cards_are_told_in_total(model):
    config = config_for(model, rollout__workers=4, learner__ranks=4)
    refused(config, [ray_node(16, 2), ray_node(16, 2)], "ask for 8 GPUs", "the Ray cluster has 4", "rollout.workers=2")


def test_dead_nodes_do_not_count(model):
    config = config_for(model, rollout__workers=1, learner__ranks=1)
    placed(config, [ray_node(8, 1), ray_node(8, 1)])
    refused(config, [ray_node(8, 1), ray_node(8, 1, alive=False)], "2 GPUs", "has 1")
    refused(config, [ray_node(8, 4, alive=False)], "no node of the Ray cluster is alive")


def test_a_custom_resource_must_be_offered(model):
    config = config_for(model, "cpu", cluster__rollout_resource="engines", cluster__learner_resource="ranks")
    sentence = refused(config, [ray_node(4, engines=1.0)], "cluster.learner_resource=ranks", "no node", "ray start")
    assert """--resources='{"ranks": 1}'""" in sentence and sentence.endswith("use cluster.learner_resource=null")
    placed(config, [ray_node(4, engines=1.0), ray_node(4, ranks=1.0)])


def test_a_marked_node_must_have_the_cards(model):
    config = config_for(model, cluster__rollout_resource="engines", rollout__tensor_parallel=2, learner__ranks=1)
    sentence = refused(config, [ray_node(16, 8), ray_node(16, 1, engines=1.0)], "that offers engines", "at most 1")
    assert "cluster.rollout_resource=null" in sentence and "rollout.tensor_parallel=1" in sentence


def test_too_many_for_the_marked_nodes(model):
    config = config_for(model, cluster__learner_resource="ranks", rollout__workers=1, learner__ranks=4)
    sentence = refused(config, [ray_node(16, 8), ray_node(16, 2, ranks=1.0)], "learner.ranks=4", "room for 2 of them")
    assert "learner.ranks=2" in sentence


def test_cores_are_shared_out_until_the_actors_fit_node_by_node(model):
    """Three asks for two thirds of a core do not fit on nodes of one core each, though the sum does."""
    config = config_for(model, "cpu", rollout__workers=1, learner__ranks=2, verifier__workers=1)
    plan = placed(config, [ray_node(1), ray_node(1)])
    asked = [row.ray_cpus for row in plan.actors if row.name != "driver" for _ in range(row.count)]
    assert len(asked) == 4 and all(share > 0 for share in asked)
    pairs = [sum(asked[i] for i in pair) for pair in itertools.combinations(range(4), 2)]
    assert any(pair <= 1 and sum(asked) - pair <= 1 for pair in pairs)


def test_too_few_cores_in_all_are_told(model):
    config = config_for(model, "cpu", learner__ranks=8)
    refused(
        config,
        [ray_node(2), ray_node(2)],
        "learner.ranks=8 asks for 8 cores",
        "the Ray cluster has 4",
        "use learner.ranks=4",
    )


def test_memory_counts_on_each_node(model):
    config = config_for(model, "cpu", rollout__kv_cache_gib=10)
    sentence = refused(
        config, [ray_node(4, memory=8)] * 4, "an engine needs 11 GiB of host memory on one node", "at most 8"
    )
    assert sentence.endswith("use rollout.kv_cache_gib=1")


def test_an_evaluation_needs_no_card_for_learners(model):
    config = config_for(model, rollout__workers=1, learner__ranks=1)
    refused(config, [ray_node(8, 1)], "2 GPUs")
    assert placed(config, [ray_node(8, 1)], training=False).gpus == 1
    config = config_for(model, rollout__workers=3, learner__ranks=1)
    sentence = refused(config, [ray_node(8, 2)], "rollout.workers=3 asks for 3 GPUs", training=False)
    assert sentence.endswith("use rollout.workers=2")


def test_many_nodes_are_searched_in_time(model):
    config = config_for(model, rollout__workers=64, rollout__tensor_parallel=2, learner__ranks=127)
    nodes = [ray_node(64 + index, 8, memory=900.0 + index) for index in range(32)]
    assert placed(config, nodes).gpus == 255


@pytest.mark.parametrize(
    ("overrides", "tokens", "words"),
    [
        ([], 1025, ["1025 tokens", "is 1024", "rollout.max_completion_tokens=255"]),
        (["rollout.max_completion_tokens=1500"], 2600, ["smaller rollout.max_prompt_tokens"]),
    ],
)
def test_the_longest_sequence_must_fit_the_context(model, overrides, tokens, words):
    config = compose_config(["profile=cpu", f"model.path={model}", *overrides])
    check_context(make_plan(config), 1024)
    with pytest.raises(ConfigError) as caught:
        check_context(make_plan(config), tokens)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_cache_must_hold_one_sequence():
    """Qwen2.5-7B in float32: 28 layers, 4 key-value heads of 128, keys and values: 114,688 bytes a token."""
    wanted = ["profile=cpu", "model=qwen2.5_7b_instruct", "rollout.kv_cache_gib=1"]
    fits = (1 << 30) // (2 * 28 * 4 * 128 * 4)
    check_context(make_plan(compose_config(wanted)), fits)
    with pytest.raises(ConfigError, match=r"rollout.kv_cache_gib=1 cannot hold .* use rollout.kv_cache_gib=2"):
        check_context(make_plan(compose_config(wanted)), fits + 1)
    check_context(make_plan(compose_config([*wanted, "rollout.kv_cache_gib=2"])), fits + 1)
