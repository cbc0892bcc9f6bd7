"""Puts the report together: one HTML file that needs nothing else and may fetch nothing."""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from expo_ray.reporting.charts import Section
from expo_ray.reporting.groups import RunGroup
from expo_ray.reporting.html import differences_table, held_out_table, notes_list, runs_table, time_table
from expo_ray.reporting.runs import RunFolder
from expo_ray.reporting.samples import embedded_samples, run_names
from expo_ray.reporting.sections import all_sections

SCRIPTS = ("draw.js", "charts.js", "samples.js", "scatter.js", "start.js")
BEHIND = {"held_out": held_out_table, "time": time_table}
"""Sections that have a table below their charts."""


def report_page(groups: Sequence[RunGroup], max_samples: int, now: datetime) -> str:
    """The whole page. Model output and other texts of the runs reach it escaped, or as JSON data."""
    sections = all_sections(groups)
    prompts, left_out = embedded_samples(groups, max_samples)
    notes = [
        f"{name}: {note}" for name, run in zip(run_names(groups), _runs(groups), strict=True) for note in run.notes
    ]
    style, script = _asset("report.css"), "\n".join(_asset(name) for name in SCRIPTS)
    data = {
        "groups": [group.label for group in groups],
        "runs": run_names(groups),
        "groupOfRun": [i for i, group in enumerate(groups) for _ in group.runs],
        "sections": {
            s.key: {"charts": s.charts, "legend": s.legend, "names": s.names, "styles": s.styles} for s in sections
        },
        "prompts": prompts,
    }
    return Template(_asset("report.html")).substitute(
        policy=escape(content_policy(style, script)),
        title=escape(", ".join(dict.fromkeys(run.label for run in _runs(groups)))),
        made=escape(now.strftime("%Y-%m-%d %H:%M:%S")),
        runs=runs_table(groups, now),
        differences=differences_table(groups),
        notes=notes_list(notes),
        links="".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in sections),
        sections="".join(_section(section, groups) for section in sections),
        left_out=notes_list(left_out),
        style=style,
        script=script,
        data=safe_json(data),
    )


def content_policy(style: str, script: str) -> str:
    """A Content-Security-Policy that allows this style sheet and this script, by their hashes, and nothing else."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def safe_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment there: <, > and & are escaped."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _section(section: Section, groups: Sequence[RunGroup]) -> str:
    body = f'<div class="charts" data-section="{section.key}"></div>'
    if not section.charts:
        body = f'<p class="empty">{escape(section.empty)}</p>'
    elif section.folded:
        body = f"<details><summary>{len(section.charts)} charts</summary>{body}</details>"
    behind = BEHIND[section.key](groups) if section.charts and section.key in BEHIND else ""
    head = f'<h2 id="{section.key}-title">{escape(section.title)}</h2><p class="told">{escape(section.told)}</p>'
    return f'<section id="{section.key}" aria-labelledby="{section.key}-title">{head}{body}{behind}</section>'


def _runs(groups: Sequence[RunGroup]) -> list[RunFolder]:
    return [run for group in groups for run in group.runs]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return files("expo_ray.reporting").joinpath("page", name).read_text(encoding="utf-8")
