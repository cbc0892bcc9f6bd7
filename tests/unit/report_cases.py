"""Hand-made run folders for the tests of the report, and a parser of its page."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from expo_ray.config.schema import Config

HOSTILE = (
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<!-- <script> ]]> &lt;b&gt; \u2028 \u2029",
    "\u202eright to left\u0000\u0007 and 'quotes' \"too\" ${name} $title",
    "$\\frac{1}{2} < x \\& y > 3$",
)


def write_run(
    folder: Path,
    algo: str = "exp_grpo",
    seed: int = 0,
    metrics: list[dict[str, Any]] | None = None,
    evaluations: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    summary: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A run folder with the given records; `settings` are dotted configuration keys with __ for the dot."""
    folder.mkdir(parents=True)
    config = OmegaConf.structured(Config())
    values = {"algo.name": algo, "seed": seed, "model.path": "/models/m", "data.name": "toy", "run_dir": str(folder)}
    for key, value in (values | {key.replace("__", "."): value for key, value in settings.items()}).items():
        OmegaConf.update(config, key, value)
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "plan.txt").write_text("plan\n")
    for name, lines in (("metrics", metrics), ("evaluations", evaluations), ("samples", samples)):
        if lines is not None:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def metric_lines(steps: int, offset: float = 0.0) -> list[dict[str, Any]]:
    """Steps whose values differ from step to step and, by `offset`, from run to run."""
    return [
        {
            "step": step,
            "reward/mean": 0.1 * step + offset,
            "pass_rate/all": 0.01 * step + offset,
            "pass_rate/level_5": 0.02 * step + offset,
            "sync/seconds": 0.5 + offset,
            "sync/max_difference": 1e-5,
            "sync/tolerance": 1e-3,
            "time/generate": 2.0 + step,
            "time/update": 1.0,
            "time/step": 4.0 + step,
        }
        for step in range(steps)
    ]


def evaluation_line(done: int, value: float) -> dict[str, Any]:
    return {
        "steps_done": done,
        "samples": 2,
        "problems": {"5": 4, "all": 4},
        "pass_at_k": {"5": {"1": value, "2": value + 0.1}, "all": {"1": value, "2": value + 0.1}},
    }


def sample_line(kind: str, text: str, outcome: str | None = "correct", step: int = 0, uid: str = "p1", **more: Any):
    """A line of samples.jsonl (docs/metrics.md)."""
    line = {"step": step, "uid": uid, "level": 5, "question": "1+1", "answers": ["2"], "kind": kind, "text": text}
    if kind != "gold":
        line |= {"outcome": outcome, "extracted": "2", "reward": float(outcome == "correct"), "tokens": 3}
        line |= {"finish_reason": "stop", "weight_version": step, "rollout_mean_logprob": -0.25, "properties": None}
    if kind == "explanation":
        line["leak"] = None
    return line | more


def hostile_samples() -> list[dict[str, Any]]:
    """A complete group of ExP-GRPO for each hostile text, which stands in every field that holds a text."""
    lines = []
    for i, text in enumerate(HOSTILE):
        about = {"uid": f"{text}{i}", "question": text, "answers": [text], "extracted": text}
        lines += [sample_line("free", text, "wrong", **about) for _ in range(4)]
        lines.append(sample_line("explanation", text, "correct", **about, leak=text))
    return lines


TEXTS = ("script", "style", "title", "td", "th", "text", "tspan")


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of the elements in TEXTS."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.open = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open = f"{tag}:{dict(attrs).get('type') or ''}" if tag in TEXTS else ""
        if self.open:
            self.inside.setdefault(self.open, []).append("")

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open:
            self.inside[self.open][-1] += data
