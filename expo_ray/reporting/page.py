"""Assembles the report: one HTML file that needs nothing else and may fetch nothing."""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from expo_ray.reporting.charts import Section
from expo_ray.reporting.groups import RunGroup
from expo_ray.reporting.html import differences_table, notes_list, runs_table, table
from expo_ray.reporting.likelihood import KINDS
from expo_ray.reporting.runs import RunFolder
from expo_ray.reporting.samples import embedded_samples, run_names
from expo_ray.reporting.sections import all_sections

SCRIPTS = ("elements.js", "charts.js", "samples.js")


def report_page(groups: Sequence[RunGroup], max_samples: int, now: datetime) -> str:
    """Returns the whole page. Model output and other texts of the runs are escaped, or embedded as JSON data."""
    sections = all_sections(groups)
    prompts, left_out = embedded_samples(groups, max_samples)
    notes = [
        f"{name}: {note}" for name, run in zip(run_names(groups), _runs(groups), strict=True) for note in run.notes
    ]
    style, script, plotly = _asset("report.css"), "\n".join(_asset(name) for name in SCRIPTS), get_plotlyjs()
    data = {
        "groups": [group.label for group in groups],
        "runs": run_names(groups),
        "groupOfRun": [i for i, group in enumerate(groups) for _ in group.runs],
        "sections": {
            s.key: {"charts": s.charts, "legend": s.legend, "names": s.names, "styles": s.styles} for s in sections
        },
        "kinds": KINDS,
        "prompts": prompts,
    }
    return Template(_asset("report.html")).substitute(
        # The empty style sheet is plotly's, which it fills through the CSSOM; no policy restricts that.
        policy=escape(content_policy([style, ""], [script, plotly])),
        title=escape(", ".join(dict.fromkeys(run.label for run in _runs(groups)))),
        made=escape(now.strftime("%Y-%m-%d %H:%M:%S")),
        runs=runs_table(groups, now),
        differences=differences_table(groups),
        notes=notes_list(notes),
        links="".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in sections),
        sections="".join(_section(section) for section in sections),
        left_out=notes_list(left_out),
        style=style,
        plotly=plotly,
        script=script,
        data=safe_json(data),
    )


def content_policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Returns a Content-Security-Policy that allows these style sheets and scripts, by hash, and nothing else."""
    style, script = (" ".join(f"'{_hash(text)}'" for text in texts) for texts in (styles, scripts))
    return f"default-src 'none'; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'"


def safe_json(value: Any) -> str:
    """Returns JSON that can neither end its script element nor open a comment in it: <, > and & are escaped."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _section(section: Section) -> str:
    body = f'<div class="charts" data-section="{section.key}"></div>'
    if not section.charts and not section.tables:
        body = f'<p class="empty">{escape(section.empty)}</p>'
    elif section.folded:
        body = f"<details><summary>{len(section.charts)} charts</summary>{body}</details>"
    tables = "".join(table(*of) for of in section.tables)
    head = f'<h2 id="{section.key}-title">{escape(section.title)}</h2><p class="intro">{escape(section.intro)}</p>'
    return f'<section id="{section.key}" aria-labelledby="{section.key}-title">{head}{body}{tables}</section>'


def _runs(groups: Sequence[RunGroup]) -> list[RunFolder]:
    return [run for group in groups for run in group.runs]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return files("expo_ray.reporting").joinpath("page", name).read_text(encoding="utf-8")
