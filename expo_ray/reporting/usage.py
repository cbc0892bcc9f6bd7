"""Memory, threads and open files of the actors' processes (`memory/<actor>_...`, docs/metrics.md)."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from expo_ray.reporting.charts import Curves, Spec, group_chart, spec_charts
from expo_ray.reporting.groups import RunGroup

MEASURED = {
    "rss_mib": ("resident memory", "MiB"),
    "threads": ("threads", "number"),
    "open_files": ("open files", "number"),
}
NAME = re.compile(r"memory/(?P<kind>.+?)(-\d+)?_(?P<what>rss_mib|threads|open_files)")


def usage_charts(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """A chart for each kind of actor and measure: at each update the largest value among the kind's actors."""
    names: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted({name for group in groups for name in group.metric_names()}):
        match = NAME.fullmatch(name)
        if match:
            names[match["what"], match["kind"]].append(name)
    charts = []
    for what, (told, unit) in MEASURED.items():
        for kind in sorted(kind for of, kind in names if of == what):
            several = len(names[what, kind]) > 1
            title = f"{kind}: {told}" + (", the largest of its actors" if several else "")
            charts.append(group_chart(Spec(kind, title, unit), [_largest(g, names[what, kind]) for g in groups]))
    store = Spec("memory/object_store_mib", "Ray's object store, all nodes", "MiB")
    return [chart for chart in charts if chart] + spec_charts([store], groups)


def _largest(group: RunGroup, names: Sequence[str]) -> Curves:
    found = []
    for run in group.runs:
        largest: dict[int, float] = {}
        for name in names:
            for step, value in zip(*run.series(name), strict=True):
                largest[step] = max(value, largest.get(step, value))
        if largest:
            found.append(largest)
    return found
