"""A run's problems: read from files or the hub, or generated for the toy task, as conf/data says."""

import logging
import random
import re
import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from expo_ray.config.errors import ConfigError, DataError, did_you_mean
from expo_ray.config.schema import DataConfig, VerifierConfig
from expo_ray.data.formats import Record, read_data_set, read_records, stem
from expo_ray.data.gym import gym_problems
from expo_ray.data.records import SOURCE, answer_key, fingerprint, problem_of, with_preset
from expo_ray.messages import Problem
from expo_ray.verifier.tasks import CHECKED, checked_golds

log = logging.getLogger(__name__)

TOY_PROBLEMS = {False: 4000, True: 500}
"""Number of the toy task's training (False) and held-out (True) problems; `max_problems` lowers the former."""
MOST_WITHOUT_ANSWER = 0.01
"""Share of the records that may lack a gold answer; they are left out. With more, the data is refused."""
_FINGERPRINT = re.compile("[0-9a-f]{16}")
_SPLIT_SEED = 2507
"""Chooses the held-out share of a local file. It does not depend on `seed`, so that seeds can be compared."""
GENERATED = ("toy", "reasoning_gym")
"""Values of `data.name` whose problems are made here, without a file."""
_OF_A_RUN = ("name", "sources", "eval_sources", "resample")
"""Keys of `data` that an entry of `data.sources` cannot set; its `name` is the set's own."""


class Problems:
    """A run's problems. Each file is read once, when its problems are first used.

    Args:
        data: conf/data. Levels are chosen by `levels` (training) or `eval_levels`, pass rates by `pass_rates` and
            `pass_rate`; `max_problems` takes a seeded sample of the training problems.
        seed: seeds the sample, and the toy task's problems.
        verifier: what grades the answers; the gold answers are then checked, and repaired where that is plain.
    """

    def __init__(self, data: DataConfig, seed: int, verifier: VerifierConfig | None = None) -> None:
        self.data, self.seed, self.verifier = data, seed, verifier
        self.golds: list[str] = []
        """What the check of each loaded file's gold answers found, for the plan."""
        self.taken: list[str] = []
        """Which columns a preset took and which problems were chosen by pass rate, for the plan."""

    @cached_property
    def training(self) -> list[Problem]:
        """The problems to train on, in the order of their file; of several sources, one source after the other.

        Raises:
            DataError: a file that is missing, empty, damaged or lacks a key; a hub that cannot be reached.
        """
        if self.data.sources:
            return self._union([each.training for each in self._sources])
        return self._load(held_out=False)

    @cached_property
    def held_out(self) -> list[Problem]:
        """The held-out problems: `eval_sources`; else `eval_path`; else `held_out_share` of `path` or of each source;
        else the hub's `eval_split`.

        Raises:
            DataError: as for `training`.
        """
        if self.data.eval_sources:
            parts = [Problems(part, self.seed, self.verifier) for part in parts_of(self.data, "eval_sources")]
            return self._union([each.held_out for each in parts], parts)
        if self.data.sources and self.data.eval_path is None:
            return self._union([each.held_out for each in self._sources])
        return self._load(held_out=True)

    def local(self, held_out: bool) -> bool:
        """Whether the training or held-out problems are read from files of this machine."""
        data = self.data
        if held_out and (data.eval_sources or data.eval_path is not None):
            return all(each.eval_path or is_folder(each.hub) for each in parts_of(data, "eval_sources"))
        return all(each.path or is_folder(each.hub) for each in parts_of(data, "sources") or [data])

    @cached_property
    def _sources(self) -> list["Problems"]:
        return [Problems(part, self.seed, self.verifier) for part in parts_of(self.data, "sources")]

    def _union(self, found: list[list[Problem]], parts: list["Problems"] | None = None) -> list[Problem]:
        """One list, in which each problem has its source's name and weight, and a uid with that name before it."""
        key = "sources" if parts is None else "eval_sources"
        all_of_them: list[Problem] = []
        for entry, problems in zip(getattr(self.data, key), found, strict=True):
            name, weight = source_name(entry), float(entry.get("weight", 1.0))
            all_of_them += [replace(p, uid=f"{name}/{p.uid}", source=name, weight=weight) for p in problems]
        for entry, part in zip(getattr(self.data, key), self._sources if parts is None else parts, strict=True):
            name = f"{source_name(entry)}: "
            for mine, its in ((self.golds, part.golds), (self.taken, part.taken)):
                mine += [name + line.removeprefix(name) for line in its]
                its.clear()
        return all_of_them

    @cached_property
    def _own_file(self) -> list[Problem]:
        """The problems of `path`, which training and held-out problems may share."""
        return self._read(
            read_records(str(self.data.path), "data.path"), bool(self.data.levels or self.data.eval_levels)
        )

    def _load(self, held_out: bool) -> list[Problem]:
        data = self.data
        levels = data.eval_levels if held_out else data.levels
        if data.name in GENERATED and data.path is None and not (held_out and data.eval_path is not None):
            if data.name == "toy":
                made = _toy(data, held_out, levels, self.seed)
            else:
                trained = {problem.question for problem in self.training} if held_out else set()
                made = gym_problems(data, held_out, self.seed, self.verifier, trained)
            return self._by_pass_rate(made) if data.pass_rates is not None and not held_out else made
        problems = self._problems(held_out)
        chosen = [problem for problem in problems if not levels or problem.level in levels]
        if not chosen and problems and not held_out:
            seen = sorted({problem.level for problem in problems if problem.level is not None})
            raise DataError(f"data.levels={levels} leaves no problem: the data has levels {seen}")
        if data.pass_rates is not None and not held_out:
            chosen = self._by_pass_rate(chosen)
        if data.max_problems and not held_out and len(chosen) > data.max_problems:
            kept = sorted(random.Random(self.seed).sample(range(len(chosen)), data.max_problems))
            chosen = [chosen[index] for index in kept]
        graded_by = {problem.task or (self.verifier.name if self.verifier else "") for problem in chosen}
        if self.verifier is None or not graded_by & {*CHECKED}:
            return chosen
        golds = checked_golds(chosen, self.verifier)
        self.golds.append(golds.text())
        return golds.problems

    def _problems(self, held_out: bool) -> list[Problem]:
        data = self.data
        levels_chosen = bool(data.eval_levels if held_out else data.levels)
        if held_out and data.eval_path is not None:
            return self._read(read_records(data.eval_path, "data.eval_path"), levels_chosen)
        if data.path is not None:
            if data.eval_path is None and not data.eval_sources and data.held_out_share > 0:
                return _share(self._own_file, data.held_out_share, held_out)
            return [] if held_out else self._own_file
        if data.hub is None:
            raise DataError(f"data={data.name} needs data.path=FILE, a file, folder or glob of records")
        split = data.eval_split if held_out else data.split
        return self._read(read_data_set(data.hub, data.hub_config, split, "data.hub"), levels_chosen)

    def _read(self, records: Iterable[Record], level_needed: bool) -> list[Problem]:
        """Every record's problem, with unique uids, without the few that lack a gold answer.

        A few may lack an answer: MATH itself has two whose box is empty. A file with many such records is refused.
        """
        data = self.data
        problems: list[Problem] = []
        uids = _Uids()
        count, without, first = 0, 0, None
        for record in records:
            if not count:
                data, taken = with_preset(data, record)
                self.taken += [taken] if taken and taken not in self.taken else []
            count += 1
            problem = problem_of(record, data, level_needed)
            if (uid := uids.unique(problem.uid, record)) != problem.uid:
                problem = replace(problem, uid=uid)
            if problem.answers:
                problems.append(problem)
            else:
                without, first = without + 1, first or record
        uids.report()
        if first is not None and without > MOST_WITHOUT_ANSWER * count:
            wanted = {"field": "nothing in it", "boxed": r"no \boxed{...} in it", "hashes": "no '#### answer' in it"}
            raise DataError(
                f"{first.where}: key '{answer_key(first, data)}' has {wanted[data.answer_from]} "
                f"({without} of {count} records have no answer): "
                "fix the line, or set data.answer_key or data.answer_from"
            )
        if first is not None:
            log.info("%d records without an answer are left out, first %s", without, first.where)
        return problems

    def _by_pass_rate(self, problems: list[Problem]) -> list[Problem]:
        """The problems whose pass rate in `pass_rates` is within `pass_rate`, each with that rate."""
        (low, high), file = self.data.pass_rate, str(self.data.pass_rates)
        rates = read_pass_rates(file)
        known = [(p, rates.get(fingerprint(p), rates.get(p.uid))) for p in problems]
        chosen = [replace(p, pass_rate=rate) for p, rate in known if rate is not None and low <= rate <= high]
        unknown = sum(rate is None for _, rate in known)
        text = (
            f"{len(chosen)} of {len(problems)} problems have a pass rate in [{low:g}, {high:g}] ({unknown} have none)"
        )
        if not chosen:
            raise DataError(
                f"data.pass_rates={file} leaves no problem: {text}; give rates of this data, or a wider range"
            )
        self.taken.append(text)
        return chosen


def is_folder(hub: str | None) -> bool:
    """Whether `data.hub` names a local folder."""
    return hub is not None and Path(hub).is_dir()


def source_name(entry: dict[str, Any]) -> str:
    """The name under which an entry of `data.sources` or `data.eval_sources` is reported."""
    return str(entry.get("name") or stem(str(entry.get("path") or entry.get("hub") or "").rstrip("/")))


def parts_of(data: DataConfig, key: str) -> list[DataConfig]:
    """The settings of each entry of `data.sources` or `data.eval_sources`: those of `data` with its own on top.

    Raises:
        ConfigError: an entry has an unknown key or a value of the wrong type, names no file, or repeats a name.
    """
    known = [each.name for each in fields(DataConfig) if each.name not in _OF_A_RUN]
    parts: list[DataConfig] = []
    names: list[str] = []
    for entry in getattr(data, key):
        shown = f"data.{key}: {entry}"
        extra = ("name", "weight") if key == "sources" else ("name",)
        if wrong := [each for each in entry if each not in known and each not in extra]:
            raise ConfigError(
                f"{shown}: '{wrong[0]}' is not a key of an entry{did_you_mean(wrong[0], [*known, *extra])}"
            )
        if not entry.get("path") and not entry.get("hub"):
            raise ConfigError(f"{shown} names no data: give path (a file, folder or glob) or hub")
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ConfigError(f"{shown}: weight={weight} is not a number above 0")
        base = replace(data, path=None, eval_path=None, hub=None, hub_config=None, sources=[], eval_sources=[])
        share = 0.0 if data.eval_path is not None or data.eval_sources else data.held_out_share
        base = replace(base, name=SOURCE, held_out_share=share)
        base.pass_rates = None if key == "eval_sources" else base.pass_rates
        try:
            own = {name: value for name, value in entry.items() if name not in extra}
            part: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(base), own))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{shown}: {str(error).splitlines()[0]}") from error
        if key == "eval_sources" and part.path:
            part = replace(part, path=None, eval_path=part.eval_path or part.path)
        parts.append(part)
        names.append(source_name(entry))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"data.{key} has two entries called '{twice}': give each a name of its own")
    if level := next((name for name in names if name in ("all", "?") or name.isdigit()), None):
        raise ConfigError(f"data.{key} has an entry called '{level}', as a level is in the tables: give another name")
    return parts


def read_pass_rates(file: str) -> dict[str, float]:
    """Pass rates by problem, from the pass_rates.jsonl of an evaluation or a file with `uid` and `pass_rate`.

    Returns:
        A problem's fingerprint (`question`), or its uid where the file has none -> its rate from 0 to 1.

    Raises:
        DataError: a record without them.
    """
    found: dict[str, float] = {}
    for record in read_records(file, "data.pass_rates"):
        rate, name = _number(record.fields.get("pass_rate")), record.fields.get("question", record.fields.get("uid"))
        if not _FINGERPRINT.fullmatch(str(name)):  # the text of a question
            name = record.fields.get("uid", name)
        if rate is None or not 0 <= rate <= 1 or name is None:
            raise DataError(
                f"{record.where}: {record.fields!r:.80} is not a problem's pass rate: give data.pass_rates the "
                "pass_rates.jsonl of an evaluation, or records with uid and pass_rate (0 to 1)"
            )
        found[str(name)] = rate
    return found


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool | None) else float(value)
    except (TypeError, ValueError):
        return None


def _toy(data: DataConfig, held_out: bool, levels: list[int], seed: int) -> list[Problem]:
    from expo_ray.world.running_totals import problems

    count = TOY_PROBLEMS[held_out]
    if data.max_problems and not held_out:
        count = min(count, data.max_problems)
    return problems("heldout" if held_out else "train", levels, count, seed)


def _share(problems: list[Problem], share: float, held_out: bool) -> list[Problem]:
    """Divides one file into training and held-out problems."""
    if len(problems) < 2:
        return [] if held_out else problems
    count = min(len(problems) - 1, max(1, round(share * len(problems))))
    kept_back = set(random.Random(_SPLIT_SEED).sample(range(len(problems)), count))
    return [problem for index, problem in enumerate(problems) if (index in kept_back) == held_out]


class _Uids:
    """Appends the record's number to a uid that an earlier record has, and reports the first.

    Explanations, pairs and lengths are stored by uid: problems that share one would exchange them.
    """

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, str, int]] = {}
        self._repeated, self._shown = 0, ""

    def unique(self, uid: str, record: Record) -> str:
        """Returns the uid itself, or with the number."""
        if uid in self._first:
            file, unit, number = self._first[uid]
            self._repeated += 1
            self._shown = self._shown or f"{record.where} ('{uid}', as in {file} {unit} {number})"
            while uid in self._first:
                uid = f"{uid}-{record.number}"
        self._first[uid] = (record.file, record.unit, record.number)
        return uid

    def report(self) -> None:
        """Prints how many were repeated."""
        if self._repeated:
            print(
                f"{self._repeated} problems repeat the uid of another, first {self._shown}: their numbers are appended",
                file=sys.stderr,
            )
