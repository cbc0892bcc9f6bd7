"""Two raylets: learners on one, the rollout worker on the other. That node is announced as preempted, and then lost."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos.compare import policy_digest
from tests.integration import small_run as small
from tests.integration.small_run import STEPS, events, status, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
START_S = 75  # an engine takes 30 on a quiet machine


@pytest.fixture(scope="module")
def cluster():
    found = head()
    yield found
    found.shutdown()


def head(tries: int = 3):
    """A cluster of one node. Ray gives it 30 s to come up, which a busy machine can miss."""
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": 3, "resources": {"learning": 1}, "object_store_memory": 100 << 20}
    try:
        return Cluster(initialize_head=True, head_node_args=resources)
    except Exception as error:  # Ray raises no narrower class here
        if tries == 1 or "timed out during startup" not in str(error):
            raise
        return head(tries - 1)


def add_node(cluster):
    return cluster.add_node(num_cpus=2, resources={"rolling": 1}, object_store_memory=100 << 20)


def start(cluster, folder: Path, *more: str) -> subprocess.Popen:
    pins = ["cluster.rollout_resource=rolling", "cluster.learner_resource=learning"]
    return small.start(folder, *pins, f"cluster.address={cluster.address}", *more)


def drain(cluster, node_id: str) -> None:
    """What a cloud's preemption notice comes to in Ray."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=cluster.address).drain_node(
        node_id, reason, "the machine is taken away", int((time.time() + 600) * 1000)
    )
    assert accepted, why


def test_the_run_goes_on_when_a_node_comes_back_and_ends_when_none_does(cluster, small_run, tmp_path):
    """A node that was announced as preempted comes back; the next one is lost for good, and the command says so."""
    second = add_node(cluster)
    folder = tmp_path / "run"
    endless = [f"trainer.steps={STEPS + 100}", f"trainer.checkpoint_every={STEPS}", f"trainer.start_s={START_S}"]
    process = start(cluster, folder, *endless)
    until(lambda: status(folder)["step"] >= 1, process)
    actors = status(folder)["actors"]
    assert actors["rollout-0"]["node_id"] != actors["learner-0"]["node_id"] == actors["learner-1"]["node_id"]
    drain(cluster, actors["rollout-0"]["node_id"])
    until(lambda: bool(events(folder, "checkpoint")), process)
    assert events(folder, "checkpoint")[0]["steps_done"] < STEPS
    assert "rollout-0" in events(folder, "preempted")[0]["what"]
    cluster.remove_node(second, allow_graceful=False)
    until(lambda: bool(events(folder, "lost")), process)
    time.sleep(5)
    third = add_node(cluster)
    until(lambda: events(folder, "checkpoint")[-1]["steps_done"] == STEPS, process)
    assert status(folder)["actors"]["rollout-0"]["node_id"] != actors["rollout-0"]["node_id"]

    cluster.remove_node(third, allow_graceful=False)
    assert process.wait(timeout=START_S + 120) == 1
    said = folder.with_suffix(".stderr").read_text().splitlines()[-1]
    for part in ("error: WaitExpired: no rollout worker is left", "add a node", "rollout-0", f"within {START_S} s"):
        assert part in said, said
    assert policy_digest(folder, STEPS) == policy_digest(small_run, STEPS)
