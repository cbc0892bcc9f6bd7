"""The manifests, the containers' files and the scripts of launch/: checked by their tools, and against each other."""

import copy
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from expo_ray.config.compose import compose_config
from expo_ray.preflight.values import check_config

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERAY = REPOSITORY / "launch/kuberay"
DOCKERFILES = sorted((REPOSITORY / "docker").glob("Dockerfile.?pu"))
SCRIPTS = [*sorted((REPOSITORY / "launch").glob("*.sh")), REPOSITORY / "launch/slurm.sbatch", REPOSITORY / ".ci/run"]
COMPOSE = REPOSITORY / "docker/compose.yaml"


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A checker of the dev extra."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, f"{name} is missing: make setup installs it"
    return subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def test_shellcheck_has_nothing_to_say(tmp_path):
    assert len(SCRIPTS) >= 6
    done = tool("shellcheck", *SCRIPTS)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.sh"
    wrong.write_text("#!/bin/sh\nrm $1\n")
    assert "SC2086" in tool("shellcheck", wrong).stdout


def test_hadolint_has_nothing_to_say(tmp_path):
    assert [file.suffix for file in DOCKERFILES] == [".cpu", ".gpu"]
    done = tool("hadolint", *DOCKERFILES)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILES[0].read_text().replace(":3.11.13-slim-bookworm", ""))
    assert "DL3006" in tool("hadolint", wrong).stdout


def test_the_compose_file_is_valid(tmp_path):
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = tool(*check, COMPOSE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("    deploy:\n      replicas: 2", "    replicas: 2"))
    assert "replicas" in tool(*check, wrong).stdout


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((KUBERAY / f"{name}.yaml").read_text())


def schema() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "tests/data/kuberay/manifests.schema.yaml").read_text())


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    return spec.get("rayClusterSpec", spec)


def groups_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(document)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_a_manifest_fits_the_schema_and_an_error_is_found(name):
    validator, document = Draft202012Validator(schema()), manifest(name)
    validator.validate(document)

    def wrong(change) -> None:
        broken = copy.deepcopy(document)
        change(broken)
        assert not validator.is_valid(broken)

    wrong(lambda d: d["spec"].update(rayversion="2.60.0"))
    wrong(lambda d: cluster_of(d).pop("authOptions"))
    wrong(lambda d: cluster_of(d)["workerGroupSpecs"][0].update(maxReplicas="8"))
    wrong(lambda d: groups_of(d)[1]["template"]["spec"]["containers"][0].update(imagee="x"))
    wrong(lambda d: groups_of(d)[0]["rayStartParams"].update({"num-cpus": 0}))


def test_both_manifests_have_the_same_cluster_of_the_installed_ray():
    cluster = manifest("raycluster")["spec"]
    assert manifest("rayjob")["spec"]["rayClusterSpec"] == cluster
    assert f"ray[default]=={cluster['rayVersion']}" in (REPOSITORY / "setup.cfg").read_text()
    assert {group["groupName"] for group in cluster["workerGroupSpecs"]} == {"cpu", "gpu"}


def crd(kind: str) -> dict[str, Any]:
    """The schema of KubeRay's own CRD, in which unknown fields are errors."""
    folder = os.environ.get("KUBERAY_CRDS")
    if folder is None:
        pytest.skip("KUBERAY_CRDS names no folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of KubeRay 1.7")
    text = (Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text()
    versions = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    found = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    found["properties"]["metadata"] = schema()["$defs"]["metadata"]  # Kubernetes checks it, the CRD says "object"
    return closed(found)


def closed(node: Any) -> Any:
    """Kubernetes' structural schema as strict validation takes it."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: closed(value) for key, value in node.items()}
    if node.pop("x-kubernetes-int-or-string", False):
        node["type"] = ["integer", "string"]
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        node.setdefault("additionalProperties", False)
    return node


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberays_own_schema(kind):
    """The manifest, and each name and type of our schema."""
    full, document, own = crd(kind), manifest(kind.lower()), schema()
    Draft202012Validator(full).validate(document)
    document["spec"]["unknown"] = 1
    assert not Draft202012Validator(full).is_valid(document)

    def compare(ours: dict[str, Any], theirs: dict[str, Any], at: str) -> Iterator[str]:
        ours = own["$defs"][ours["$ref"].rsplit("/", 1)[1]] if "$ref" in ours else ours
        if "type" in ours and ours["type"] not in (theirs["type"], *theirs["type"]):
            yield f"{at} is {theirs['type']}"
        for name, value in ours.get("properties", {}).items():
            if name not in theirs["properties"]:
                yield f"{at}/{name} is not there"
            elif name not in ("apiVersion", "kind", "metadata"):
                yield from compare(value, theirs["properties"][name], f"{at}/{name}")
        if "items" in ours:
            yield from compare(ours["items"], theirs["items"], f"{at}[]")

    assert list(compare(own["$defs"][kind], full, kind)) == []


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def in_context(path: str, ignore: Path) -> bool:
    """Whether the build context holds a path, by .dockerignore's rule that the last line that fits decides."""
    rules = [line for line in ignore.read_text().splitlines() if line and not line.startswith("#")]
    parents = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 2)]
    held = True
    for rule in rules:
        pattern = rule.lstrip("!").rstrip("/")
        if any(
            fnmatch.fnmatch(f"/{parent}", pattern.replace("**/", "*/") if "**" in pattern else f"/{pattern}")
            for parent in parents
        ):
            held = rule.startswith("!")
    return held


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.suffix)
def test_an_image_is_made_of_what_its_context_holds(dockerfile):
    ignore = dockerfile.with_name(dockerfile.name + ".dockerignore")
    copies = [rest.split() for word, rest in instructions(dockerfile) if word == "COPY" and "--from" not in rest]
    sources = [part for parts in copies for part in parts[:-1] if not part.startswith("--")]
    assert {"expo_ray", "conf", "requirements", "launch"} <= set(sources)
    for source in sources:
        assert (REPOSITORY / source).exists() and in_context(source, ignore), source
    for stranger in (".git/HEAD", ".venv/bin/python", "runs/demo", "tests/conftest.py", "docs/sync.md"):
        assert not in_context(stranger, ignore), stranger
    assert not in_context("expo_ray/sync/__pycache__/proof.pyc", ignore)
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    files = [REPOSITORY / name for name in tracked.stdout.split("\n") if name and in_context(name, ignore)]
    size = sum(file.stat().st_size for file in files if file.exists())
    assert 1e6 < size < 10e6 or not files  # a checkout without git has no list


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.suffix)
def test_an_image_is_pinned_small_and_not_roots(dockerfile):
    found = instructions(dockerfile)
    stages = [rest for word, rest in found if word == "FROM"]
    assert len(stages) >= 3 and re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+ AS base", stages[0])
    assert [rest for word, rest in found if word == "USER"] == ["1000:1000"]
    assert any(word == "HEALTHCHECK" and "ray health-check" in rest for word, rest in found)
    downloads = [rest for word, rest in found if word == "RUN" and ("apt-get" in rest or "setup.sh" in rest)]
    assert len(downloads) == 2 and all("--mount=type=cache" in rest for rest in downloads)
    target = re.search(r'\["make", "([\w-]+)"\]', dict(found)["CMD"])
    assert target and f"\n{target.group(1)}: " in (REPOSITORY / "Makefile").read_text()


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_what_a_manifest_names_exists(name):
    document = manifest(name)
    claim = manifest("storage")["metadata"]["name"]
    for group in groups_of(document):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert (REPOSITORY / f"docker/Dockerfile.{container['image'].removeprefix('expo-ray:')}").exists()
        assert pod["securityContext"]["runAsUser"] == 1000 and pod["securityContext"]["runAsNonRoot"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert mounted == {"shared": "/shared", "shm": "/dev/shm"} and set(volumes) == set(mounted)
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        assert container["resources"]["requests"] == container["resources"]["limits"]
    secret = cluster_of(document)["authOptions"]["secretName"]
    assert (
        f"kubectl create secret generic {secret} --from-literal=auth_token="
        in (KUBERAY / "raycluster.yaml").read_text()
    )


def test_the_job_of_the_manifest_is_one_that_its_cluster_can_run():
    spec = manifest("rayjob")["spec"]
    first, python, flag, module, *overrides = spec["entrypoint"].split()
    assert (first, python, flag) == ("exec", "python", "-m") and find_spec(module)
    assert next(o for o in overrides if o.startswith("run_dir=")).startswith("run_dir=/shared/")
    overrides = [o for o in overrides if not o.startswith("run_dir=")]
    plan = check_config(compose_config([*overrides, "dry_run=true"]))
    gpu = next(group for group in spec["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    size = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert plan.gpus == int(size["nvidia.com/gpu"]) * gpu["replicas"]
    assert plan.resources.cores == int(size["cpu"]) * gpu["replicas"]
    assert set(yaml.safe_load(spec["runtimeEnvYAML"])) == {"env_vars"}


def test_the_containers_of_compose():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert set(services) == {"head", "worker", "submit"} and services["worker"]["deploy"]["replicas"] == 2
    for service in services.values():
        assert (REPOSITORY / f"docker/Dockerfile.{service['image'].removeprefix('expo-ray:')}").exists()
        assert service["environment"] == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray_token"}
        assert service["secrets"] == ["ray_token"] and service["volumes"] == ["shared:/shared"]
    assert services["head"]["ports"][0].startswith("127.0.0.1:")
    python, flag, module, *options = services["submit"]["entrypoint"]
    assert (python, flag) == ("python", "-m") and find_spec(module)
    assert options == ["--address", "http://head:8265", "--runs", "/shared/runs"]
    assert services["submit"]["profiles"] == ["submit"]
    for port, where in (("8265", "http://head:8265"), ("6379", "--address=head:6379")):
        assert f"port={port}" in services["head"]["command"]
        assert where in services["worker"]["command"] + str(options)
