"""Composes conf/ and command-line overrides into a typed Config, with Hydra; each error becomes one sentence."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, reduce
from itertools import chain
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import expo_ray
from expo_ray.config.algorithms import explanations_of, group_choice
from expo_ray.config.errors import ConfigError, did_you_mean
from expo_ray.config.idle import idle_keys
from expo_ray.config.keys import DROPPED, REPLACED, defaults, mappings
from expo_ray.config.resources import default_profile
from expo_ray.config.schema import Config

PACKAGE = Path(expo_ray.__file__).resolve().parent
REPOSITORY = PACKAGE.parent
"""The folder that holds expo_ray/: the repository, or site-packages where the package was installed from a wheel."""
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else REPOSITORY / "conf"
"""The packaged configuration: a wheel has it inside the package (setup.py)."""


@cache
def register() -> None:
    """Registers the schema and conf/'s resolvers with Hydra; may be called again."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("default_profile", default_profile, replace=True)
    OmegaConf.register_new_resolver("repo", lambda path: str(REPOSITORY / path), replace=True)


def compose_config(overrides: list[str]) -> Config:
    """Composes conf/train.yaml with command-line overrides and fills in derived values.

    Raises:
        ConfigError: unknown key or group choice, wrong type, grammar; one sentence.
    """
    register()
    parsed = parse_overrides(overrides)
    for override in parsed:
        _check_override(override)
    config = _composed(overrides)
    if not config.run_dir.strip() or not config.run_name.strip():
        raise ConfigError("run_dir and run_name cannot be empty: leave them out, or give run_dir=FOLDER run_name=NAME")
    derive(config)
    _drop_experiment_values(config, parsed)
    return config


def _composed(overrides: list[str]) -> Config:
    """What Hydra composes. The groups take it a quarter of a second: all jobs of a sweep share what they give."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(map(forced_mapping, overrides)))
        values = [override for override in parsed if _sets_a_value(override)]
        others = [override for override in parsed if override not in values]
        if any(override.key_or_group not in groups() or override.is_delete() for override in others):
            values, others = [], parsed  # Hydra's own keys, and what it refuses
        chosen = tuple(str(override.input_line) for override in others)
        composed = copy.deepcopy(_of_groups(chosen, str(Path.cwd()), default_profile()))
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)  # what Hydra does after the groups
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_sentence(error)) from error
    except YAMLError as error:  # a file of the user's own conf/
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from error
    assert isinstance(config, Config)
    return config


def _sets_a_value(override: Override) -> bool:
    key = override.key_or_group
    known = key in defaults() or key.startswith(tuple(f"{name}." for name in mappings()))
    return known and override.package is None and not (override.is_delete() or override.is_sweep_override())


@lru_cache(maxsize=64)
def _of_groups(overrides: tuple[str, ...], _folder: str, _profile: str) -> DictConfig:
    """Composes conf/ with choices of groups; the working directory and the visible cards matter too."""
    with _own_hydra(), initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(config_name="train", overrides=list(overrides))


def forced_mapping(override: str) -> str:
    """Lets Hydra add names to a key whose value is a mapping, one by one too, which it allows behind `++` only."""
    key = override.partition("=")[0].lstrip("+")
    inside = any(key == name or key.startswith(f"{name}.") for name in mappings())
    return f"++{override.lstrip('+')}" if inside else override


def _drop_experiment_values(config: Config, parsed: list[Override]) -> None:
    """Takes back what an experiment sets for its own choices where the command line chooses otherwise.

    With another algorithm than the experiment's, the values of that algorithm's file in conf/algo win. A key that
    acts in the experiment as it is, but not in `config`, gets its default. Keys on the command line stay.
    """
    given = {override.key_or_group: override for override in parsed}
    if "experiment" not in given or given["experiment"].value() is None or len(given) == 1:
        return
    theirs = _experiment(str(given["experiment"].input_line), str(Path.cwd()))
    name = config.algo.name
    if group_choice(name) != group_choice(theirs.algo.name):
        for key, value in algorithm_values(name).items():
            if f"algo.{key}" not in given:
                setattr(config.algo, key, value)
    idle_there = {idle.key for idle in idle_keys(theirs, algorithm_values(theirs.algo.name))}
    for idle in idle_keys(config, algorithm_values(name)):
        chosen = any(key == idle.key or key.startswith(f"{idle.key}.") for key in given)  # or a name of a mapping
        if not chosen and idle.key not in idle_there:
            *groups_of_key, leaf = idle.key.split(".")
            setattr(reduce(getattr, groups_of_key, config), leaf, idle.default)


@cache
def _experiment(override: str, _folder: str) -> Config:
    """An experiment as it is, without other overrides; the working directory decides which conf/ is found."""
    return derive(_composed([override]))


def algorithm_values(name: str) -> dict[str, Any]:
    """What conf/algo sets for an algorithm, or for the one that it derives from, besides the name."""
    choice = group_choice(name)
    file = next(
        path for folder in (user_conf(), CONF) if folder and (path := folder / "algo" / f"{choice}.yaml").is_file()
    )
    return copy.deepcopy(_algorithm_file(file, file.stat().st_mtime_ns))


@lru_cache(maxsize=64)
def _algorithm_file(file: Path, _written: int) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(OmegaConf.load(file))
    return {key: value for key, value in values.items() if key not in ("name", "defaults")}


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Sets aside a running Hydra: within a sweep, the launcher composes the configurations of its jobs."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def derive(config: Config) -> Config:
    """Fills in values that follow from others: no explanations for algorithms without them, absolute paths."""
    if explanations_of(config) == "none":
        config.rollout.explanations_per_prompt = 0
    config.run_dir = str(Path(config.run_dir).expanduser().absolute())
    if (folder := Path(config.model.path).expanduser()).exists():
        config.model.path = str(folder.absolute())
    data = config.data
    for group, key in ((data, "path"), (data, "eval_path"), (data, "pass_rates"), (config.algo, "dpo_pairs_path")):
        if (value := getattr(group, key)) is not None:
            setattr(group, key, _absolute(value))
    for entry in [*data.sources, *data.eval_sources]:
        entry |= {key: _absolute(str(entry[key])) for key in ("path", "eval_path", "pass_rates") if entry.get(key)}
        entry |= {"hub": _absolute(str(entry["hub"]))} if _is_folder(entry.get("hub")) else {}
    data.hub = _absolute(str(data.hub)) if _is_folder(data.hub) else data.hub
    if config.trainer.resume not in ("auto", "never"):
        config.trainer.resume = str(Path(config.trainer.resume).expanduser().absolute())
    return config


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _is_folder(name: Any) -> bool:
    return bool(name) and Path(str(name)).expanduser().is_dir()


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Parses overrides by Hydra's grammar.

    Raises:
        ConfigError: not in the form key=value.
    """
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed += parser.parse_overrides([text])
        except HydraException as error:
            raise ConfigError(f"'{text}' is not an override: write key=value, with quotes around odd signs") from error
    return parsed


def jobs_of(overrides: list[str], multirun: bool) -> list[list[str]]:
    """The overrides of each job of a command.

    Raises:
        ConfigError: a key has several values, and `multirun` is off.
    """
    if multirun:
        return list(sweep_jobs(overrides))
    for override in parse_overrides(overrides):
        if override.is_sweep_override():
            raise ConfigError(f"'{override.input_line}' names several values: add -m to run each of them")
    return [overrides]


def sweep_jobs(overrides: list[str]) -> Iterator[list[str]]:
    """Yields the overrides of each job of a sweep; only of one job if the sweeper chooses the values itself."""
    parsed = parse_overrides(overrides)
    if sweeper_chooses(parsed):
        yield [o.input_line for o in parsed if o.input_line and not o.is_sweep_override()]
        return
    yield from chain.from_iterable(BasicSweeper.split_arguments(parsed, None))


def sweeper_chooses(parsed: list[Override]) -> bool:
    """Whether a sweep's values are known only while it runs: by another sweeper than Hydra's, or of an interval."""
    intervals = (o.is_sweep_override() and not o.is_discrete_sweep() for o in parsed)
    return any(o.get_key_element() == "hydra/sweeper" for o in parsed) or any(intervals)


def user_conf() -> Path | None:
    """The user's own conf/ in the working directory, which goes before the packaged one; None if there is none."""
    own = Path.cwd() / "conf"
    return own if own.is_dir() and not own.samefile(CONF) else None


def groups() -> dict[str, list[str]]:
    """Each config group with its choices: those of the packaged conf/ and of the user's own."""
    own = user_conf()
    found: dict[str, list[str]] = {}
    for file in [*CONF.glob("*/*.yaml"), *(own.glob("*/*.yaml") if own else ())]:
        if file.parent.name != "hydra":
            found.setdefault(file.parent.name, []).append(file.stem)
    return {group: sorted(set(found[group])) for group in sorted(found)}


def choices_text() -> str:
    """All choices of all config groups, one group a line, for --help."""
    return "".join(f"  {group + '=':12} {', '.join(choices)}\n" for group, choices in groups().items())


def _check_override(override: Override) -> None:
    """Refuses unknown keys, choices and types before Hydra does, whose messages take several lines."""
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")) or override.is_delete():
        return
    value = override.value()
    if key in groups():
        _check_choice(key, value)
    elif key in defaults():
        _check_type(override, value)
    elif key in REPLACED:
        new, values = REPLACED[key]
        raise ConfigError(f"{key} is now {new}: use {new}={values.get(value, '/'.join(values.values()))}")
    elif key in DROPPED:
        raise ConfigError(f"{key} is no longer a key: use {DROPPED[key]}")
    elif key.startswith(tuple(f"{name}." for name in mappings())):
        pass  # names of vLLM, DeepSpeed or a chat template, which are checked with the whole configuration
    elif (parent := key.rpartition(".")[0]) in defaults():
        raise ConfigError(
            f"'{override.input_line}': {parent} is one value, write '{parent}={{{key.rpartition('.')[2]}: VALUE}}'"
        )
    else:
        known = [*defaults(), *groups()]
        # The leaf may be right and its parent wrong, as in steps=3.
        leaves = [name for name in known if name.endswith("." + key.rsplit(".", 1)[-1])]
        hint = did_you_mean(key, known) or (f"; did you mean '{leaves[0]}'?" if leaves else "")
        raise ConfigError(
            f"unknown key '{key}' in '{override.input_line}'{hint or '; the keys are in expo_ray/config/schema.py'}"
        )


def _check_choice(group: str, value: Any) -> None:
    choices = groups()[group]
    names = value if isinstance(value, list) else [value]
    for name in names:
        if name is None and group == "experiment":
            continue
        if group == "algo" and ":" in str(name):
            _add_algorithm(str(name))
            continue
        if name not in choices:
            hint = did_you_mean(str(name), choices)
            raise ConfigError(f"{group}={name} is not a choice{hint} (choices: {', '.join(choices)})")


def _add_algorithm(name: str) -> None:
    """Makes `algo=package.module:Class` a choice: the values of the algorithm that it derives from, and its name."""
    node = {"defaults": [group_choice(name), "_self_"], "name": name}
    ConfigStore.instance().store(group="algo", name=name, node=node)


def _check_type(override: Override, value: Any) -> None:
    if override.is_sweep_override():
        return
    key = override.key_or_group
    try:
        OmegaConf.update(_typed(), key, value, merge=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}={override.get_value_element_as_str()} does not fit: {_expected(key)}") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not a finite number")


@cache
def _typed() -> Any:
    """The schema as OmegaConf checks it, made once; each check of a key overwrites its value."""
    return OmegaConf.structured(Config)


def _expected(key: str) -> str:
    node = _typed()
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node[parent]
    kind = OmegaConf.get_type(node).__annotations__[leaf]
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if kind == dict[str, Any]:
        return "it takes names with values, as {name: value}"
    return f"it takes {words.get(kind, str(kind).replace('list[int]', 'a list of whole numbers, as [1,2]'))}"


def _sentence(error: BaseException) -> str:
    """The first line of a message from Hydra or OmegaConf, with the key if it names one."""
    if isinstance(error, MissingConfigException) and error.options:
        return f"{str(error).strip().splitlines()[0]} (choices: {', '.join(error.options)})"
    key = getattr(error, "full_key", None)
    if key in DROPPED:  # in an experiment of the user's own
        return f"{key} is no longer a key: use {DROPPED[key]}"
    first = str(error).strip().split("\n")[0]
    if isinstance(error, ConfigCompositionException) and error.__context__ is not None:
        return f"{first.partition(':')[0]}: {_sentence(error.__context__)}"  # which file, and what is wrong in it
    if "hydra/sweeper/optuna" in first:
        return f"{first} It comes with hydra-optuna-sweeper: run make setup"
    return f"{key}: {first}" if key and key not in first else first


def quoted(value: str) -> str:
    """Quotes a text for Hydra's grammar, whatever characters it holds."""
    return "'" + value.replace("'", "\\'") + "'"
