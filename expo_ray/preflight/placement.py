"""Checks that a plan's actors can be placed on the nodes; the search is exact, so nothing placeable is refused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from expo_ray.config.resources import Resources
from expo_ray.preflight.plan import Plan

Node = Mapping[str, float]
"""Resources of one node: CPU, GPU, memory (GiB) and custom ones by name."""
ACTORS = {
    "rollout": ("an engine", "engines"),
    "learner": ("a learner rank", "learner ranks"),
    "verifier": ("a verifier", "verifiers"),
    "reward": ("a reward actor", "reward actors"),
}
KEYS = {
    "rollout": "rollout.workers", "learner": "learner.ranks", "verifier": "verifier.workers", "reward": "reward.workers"
}  # fmt: skip
PIN = 0.001
"""Amount of a custom resource that an actor asks for: it marks a node and is not used up."""
TINY = 1e-9
Counts = tuple[int, ...]


@dataclass(frozen=True)
class Bundle:
    """What each of `count` actors of one kind needs on its node."""

    actor: str
    count: int
    needs: Mapping[str, float]

    def most(self, node: Node, used: Mapping[str, float]) -> int:
        """How many fit on a node where `used` is taken."""
        fits = [
            int((node.get(name, 0.0) - used.get(name, 0.0) + TINY) // need)
            for name, need in self.needs.items()
            if need > 0
        ]
        return max(0, min([self.count, *fits]))


def bundles(plan: Plan) -> list[Bundle]:
    """One bundle for each kind of actor: engines with all their shards' GPUs, learner ranks, verifiers."""
    found = []
    for row in (plan.actor(actor) for actor in ACTORS):
        if not row.count:
            continue
        needs = {"CPU": row.ray_cpus, "GPU": row.gpus, "memory": row.memory.sure(row.memory.host)}
        if resource := pinned_to(plan, row.name):
            needs[resource] = PIN
        found.append(Bundle(row.name, row.count, needs))
    return found


def pinned_to(plan: Plan, actor: str) -> str | None:
    """The custom resource that an actor's node must offer; None: any node will do."""
    cluster = plan.config.cluster
    return {"rollout": cluster.rollout_resource, "learner": cluster.learner_resource}.get(actor)


def alike_nodes(resources: Resources) -> list[Node]:
    """The nodes of `resources`, each with its share of the totals."""
    count = resources.nodes
    node = {"CPU": resources.cores / count, "GPU": resources.gpus // count, "memory": resources.memory_gib / count}
    return [node | dict.fromkeys(resources.custom, 1.0)] * count


def placement_problem(plan: Plan, nodes: Sequence[Node]) -> str | None:
    """Names what cannot be placed, without a remedy; None if every actor has a place.

    Args:
        plan: the run's plan.
        nodes: resources of each node.
    """
    kinds = bundles(plan)
    for bundle in kinds:
        if not any(bundle.most(node, {}) for node in nodes):
            return _on_no_node(plan, bundle, nodes)
    for last in range(1, len(kinds) + 1):
        if not packs(kinds[:last], nodes):
            return _too_many(plan, kinds[:last], nodes)
    return None


def placeable(plan: Plan, nodes: Sequence[Node]) -> Plan:
    """Lowers the shares of a core that actors ask Ray for until they fit, if nothing else keeps them from it."""
    for step in range(40):
        lower = replace(
            plan, actors=[replace(row, ray_cpus=_rounded(row.ray_cpus * 0.85**step)) for row in plan.actors]
        )
        if packs(bundles(lower), nodes):
            return lower
    return plan


def packs(kinds: Sequence[Bundle], nodes: Sequence[Node]) -> bool:
    """Whether all bundles fit on the nodes together.

    Goes node by node and keeps the counts placed so far that no others beat in every kind.
    """
    wanted = tuple(bundle.count for bundle in kinds)
    reached: set[Counts] = {(0,) * len(kinds)}
    known: dict[tuple[tuple[str, float], ...], list[Counts]] = {}
    for node in nodes:
        key = tuple(sorted(node.items()))
        if key not in known:
            known[key] = _unbeaten(set(_fillings(kinds, node, {})))
        sums = {
            tuple(min(w, a + b) for w, a, b in zip(wanted, placed, more, strict=True))
            for placed, more in product(reached, known[key])
        }
        if wanted in sums:
            return True
        reached = set(_unbeaten(sums))
    return wanted in reached


def _fillings(kinds: Sequence[Bundle], node: Node, used: Mapping[str, float]) -> Iterator[Counts]:
    """Yields counts of each kind that fit on one node together, always with as many of the last kind as possible."""
    first, *rest = kinds
    most = first.most(node, used)
    if not rest:
        yield (most,)
        return
    for count in range(most, -1, -1):
        taken = {name: used.get(name, 0.0) + count * need for name, need in first.needs.items()}
        for others in _fillings(rest, node, {**used, **taken}):
            yield (count, *others)


def _unbeaten(found: set[Counts]) -> list[Counts]:
    kept: list[Counts] = []
    for counts in sorted(found, reverse=True):
        if not any(all(a >= b for a, b in zip(other, counts, strict=True)) for other in kept):
            kept.append(counts)
    return kept


def _on_no_node(plan: Plan, bundle: Bundle, nodes: Sequence[Node]) -> str:
    one, where = ACTORS[bundle.actor][0], plan.resources.where
    resource = pinned_to(plan, bundle.actor)
    if resource and not any(node.get(resource, 0.0) > 0 for node in nodes):
        return f"cluster.{bundle.actor}_resource={resource}: no node of {where} offers it"
    marked = [node for node in nodes if not resource or node.get(resource, 0.0) > 0]
    on = f"a node of {where}" + (f" that offers {resource}" if resource else "")
    for name, unit in (("GPU", "GPUs"), ("CPU", "CPUs"), ("memory", "GiB of host memory")):
        need, largest = bundle.needs[name], max(node.get(name, 0.0) for node in marked)
        if need > largest + TINY:
            cause = (
                f"rollout.tensor_parallel={plan.config.rollout.tensor_parallel}: "
                if _shards(plan, bundle, name)
                else ""
            )
            return f"{cause}{one} needs {_figure(need)} {unit} on one node, {on} has at most {_figure(largest)}"
    needs = ", ".join(f"{_figure(need)} {name}" for name, need in bundle.needs.items() if need > 0)
    return f"{one} needs {needs} on one node, and no node of {where} has all of it"


def _shards(plan: Plan, bundle: Bundle, name: str) -> bool:
    return bundle.actor == "rollout" and name == "GPU" and plan.config.rollout.tensor_parallel > 1


def _too_many(plan: Plan, kinds: Sequence[Bundle], nodes: Sequence[Node]) -> str:
    *before, last = kinds
    fitting = next(n for n in range(last.count - 1, -1, -1) if packs([*before, replace(last, count=n)], nodes))
    others = " and ".join(
        f"{b.count} {ACTORS[b.actor][b.count > 1].removeprefix('an ').removeprefix('a ')}" for b in before
    )
    needs = ", ".join(f"{_figure(need)} {name}" for name, need in last.needs.items() if need > 0 and name != "memory")
    return (
        f"{KEYS[last.actor]}={last.count}: {plan.resources.where} has room for {fitting} of them"
        f"{f' besides {others}' if others else ''} ({needs} each on one node; {offers(nodes)})"
    )


def offers(nodes: Sequence[Node]) -> str:
    """Describes the nodes: how many have how many GPUs, or CPUs if none has a GPU."""
    name = "GPU" if any(node.get("GPU", 0) for node in nodes) else "CPU"
    amounts = sorted((node.get(name, 0.0) for node in nodes), reverse=True)
    groups = [f"{amounts.count(amount)} with {_figure(amount)}" for amount in dict.fromkeys(amounts)]
    return f"nodes by {name}s: {', '.join(groups)}"


def _rounded(share: float) -> float:
    return max(0.001, int(share * 1000) / 1000) if share > 0 else 0.0


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.3g}"
