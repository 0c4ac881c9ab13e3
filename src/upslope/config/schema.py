"""The configuration as frozen dataclasses, and the check that finds every fault at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

from upslope import datasets, models, registry, strategies, tasks
from upslope.comparison.run import FOLDER_NAMES, names_a_folder
from upslope.config.yaml_text import read_yaml
from upslope.errors import ConfigError
from upslope.experiment import ExperimentSettings
from upslope.training import RECIPES, TrainingSettings, with_recipe

Device = Literal["auto", "cpu", "cuda", "mps"]
_MOST_SEEDS = 100_000
"""Of a count of seeds, each of which is a run: a thousand times what anybody has time for."""
Settings = TypeVar("Settings", ExperimentSettings, TrainingSettings)


@dataclass(frozen=True)
class Choice:
    """An entry of a table, and its options. `label` is what reports call a strategy.

    name: of the entry.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True)
class Config:
    """Everything that a comparison is. The defaults are the demonstration on digits.

    data, model, task: the name and the options of each. strategies: which to run. seeds: one run of
    each strategy per seed. experiment, training: settings. device: "auto", "cpu", "cuda" ...
    """

    data: Choice = Choice("digits")
    root: str | None = None
    """File or folder of the data set, `data.root`; else the environment's UPSLOPE_DATA."""
    model: Choice = Choice("cnn-small")
    freeze: bool = False
    """Features of the network are computed once, and a head is trained on them: `model.freeze`."""
    task: Choice = Choice("classification")
    strategies: tuple[Choice, ...] = (Choice("random", label="random"),)
    named: bool = False
    """Somebody said which strategies."""
    every: bool = False
    """`strategies: all`: every one that the task and the network can serve."""
    seeds: tuple[int, ...] = (0,)
    experiment: ExperimentSettings = field(default_factory=ExperimentSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    device: Device = "auto"
    full_data: int = 0
    """So many of the seeds get a model trained on every label of the pool."""
    workers: int = 1
    """Processes, each with a seed at a time."""

    def protocol(self) -> dict[str, Any]:
        """Return what decides the figures, as plain data: stored with each run, shown in reports.

        Where the files lie, the device and which strategies and seeds run beside are no part of
        it, so a run can go on elsewhere, or get company.
        """
        return {
            "data": {"name": self.data.name, **self.data.options},
            "model": {
                "name": self.model.name,
                **self.model.options,
                **({"freeze": True} if self.freeze else {}),  # left out before it was there
            },
            "task": {"name": self.task.name, **self.task.options},
            "experiment": {k: v for k, v in self.experiment.record().items() if k != "seed"},
            "training": {**self.training.record(), "milestones": list(self.training.milestones)},
        }


SECTIONS = (
    "data", "model", "task", "strategies", "seeds", "experiment", "training", "device", "full_data",
    "workers",
)  # fmt: skip

_USUAL, _OF_MASKS = ("cnn-small", "classification"), ("dilated-small", "segmentation")
_BY_DATA = {
    "text": ("bag-of-words", "text-classification"),
    "table": ("mlp", "classification"),
    "breast-cancer": ("mlp", "classification"),
    **dict.fromkeys(("mask-folder", "camvid", "cityscapes"), _OF_MASKS),
}
"""Data set -> (model, task) where none is named and those of images would not fit."""
_TARGETS = {"coco": "classes", "voc": "masks"}
"""What data sets of both kinds give where `data.target` does not say it."""


def parse(document: Mapping[str, Any]) -> Config:
    """Return a configuration from plain data, such as YAML gives.

    document: the sections by name.

    Raises:
        ConfigError: unknown keys, wrong types and values out of range: all of them, one per line,
            each with its path.
    """
    faults: list[str] = []
    model, task = _model_and_task(document.get("data"))
    config = Config(model=Choice(model), task=Choice(task))
    for key in document:
        if key not in SECTIONS:
            close = _section_of(str(key)) or registry.did_you_mean(str(key), SECTIONS) or "."
            faults.append(f"{key}: unknown key{close} Expected one of {', '.join(SECTIONS)}.")
    checks: dict[str, Callable[[Any, list[str]], dict[str, Any]]] = {
        "data": _data,
        "model": lambda v, f: _model(v, f, model),
        "task": lambda v, f: {"task": _choice("task", v, tasks.check_options, f, task)},
        "strategies": lambda v, f: {
            "strategies": _strategies(v, f),
            "named": True,
            "every": v == "all",
        },
        "seeds": lambda v, f: {"seeds": _seeds(v, f)},
        "experiment": lambda v, f: {"experiment": _settings(ExperimentSettings, v, f)},
        "training": lambda v, f: {"training": _settings(TrainingSettings, v, f)},
        "device": lambda v, f: {"device": _device(v, f)},
        "full_data": lambda v, f: {"full_data": _count("full_data", v, 0, f)},
        "workers": lambda v, f: {"workers": _count("workers", v, 1, f)},
    }
    for key, check in checks.items():
        if key in document:
            config = replace(config, **check(document[key], faults))
    if faults:
        raise ConfigError("\n".join(faults))
    return config


def _section_of(key: str) -> str:
    """Return a did-you-mean clause for a key that stands in a section, or nothing."""
    known_keys = {
        "data": {"root", "name"}.union(*(datasets.options(name) for name in datasets.REGISTRY)),
        "training": {"recipe", *(one.name for one in fields(TrainingSettings))},
        "experiment": {one.name for one in fields(ExperimentSettings)},
    }
    names = [f"{section}.{key}" for section, keys in known_keys.items() if key in keys]
    return f"; did you mean {' or '.join(f'`{name}`' for name in names)}?" if names else ""


def _data(value: Any, faults: list[str]) -> dict[str, Any]:
    root = None
    if isinstance(value, Mapping):
        root = value.get("root")
        value = {k: v for k, v in value.items() if k != "root"}
        if root is not None and not isinstance(root, str):
            faults.append(f"data.root: expected a path but got {root!r}")
            root = None
        elif root is not None and not root.strip():
            faults.append("data.root: expected a path, . for the current folder, but got ''")
    root = os.path.expandvars(root) if root else None
    return {
        "data": _choice("data", value, datasets.check_options, faults, "digits", ("root",)),
        "root": root,
    }


def _model_and_task(data: Any) -> tuple[str, str]:
    """Return the model and the task that fit a data set, where the configuration names none."""
    name = _name_in(data)
    if name in _TARGETS:
        target = data.get("target", _TARGETS[name]) if isinstance(data, Mapping) else _TARGETS[name]
        return _OF_MASKS if target == "masks" else _USUAL
    return _BY_DATA.get(name, _USUAL)


def _name_in(section: Any) -> str:
    """Return the name in a section that is a name, or a mapping with one; empty where there is
    none.
    """
    name = section.get("name") if isinstance(section, Mapping) else section
    return name if isinstance(name, str) else ""


def _model(value: Any, faults: list[str], default: str) -> dict[str, Any]:
    """Return a model with its options; `freeze` is ours, unless a function of the user's own takes
    it.
    """
    freeze: Any = False
    if isinstance(value, Mapping) and "freeze" in value:
        name = value.get("name", default)
        if not isinstance(name, str) or not _takes_freeze(name):
            freeze = value["freeze"]
            value = {k: v for k, v in value.items() if k != "freeze"}
    if not isinstance(freeze, bool):
        faults.append(f"model.freeze: expected true or false but got {freeze!r}")
        freeze = False
    choice = _choice("model", value, models.check_options, faults, default, ("freeze",))
    return {"model": choice, "freeze": freeze}


def _takes_freeze(name: str) -> bool:
    """Tell whether an option `freeze` is that of a function of the user's own."""
    try:
        return ":" in name and "freeze" in models.check_options(name, {"freeze": True})
    except ConfigError:  # told where the model itself is checked
        return False


def _choice(
    path: str,
    value: Any,
    check: Callable[[str, Mapping[str, Any]], Any],
    faults: list[str],
    default: str = "",
    also: tuple[str, ...] = (),
) -> Choice:
    """Return a name, or a mapping with a name and options, checked by the table it comes from.

    also: keys beside the name that are no options.
    """
    if isinstance(value, str):
        value = {"name": value}
    elif isinstance(value, Mapping) and default:
        value = {"name": default, **value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        faults.append(f"{path}.name: expected a name, and its options beside it, but got {value!r}")
        return Choice("")
    # Only a strategy has a `label` of ours: of many readers it is an option.
    ours = {"name", "label"} & {"name", *also}
    name = value["name"]
    label = value.get("label") if "label" in ours else None
    label = name if label is None else label
    options = {str(k): v for k, v in value.items() if k not in ours}
    try:
        valid_options = check(name, options)
    except ConfigError as error:
        faults.extend(_faults(path, error, ("name", *also)))
        valid_options = {}
    return Choice(name, valid_options if isinstance(valid_options, dict) else options, str(label))


def _strategies(value: Any, faults: list[str]) -> tuple[Choice, ...]:
    if isinstance(value, str):
        try:
            value = list(_fair()) if value == "all" else names_or_mappings(value)
        except ConfigError as error:
            faults.append(f"strategies: {error}")
            return ()
    if not isinstance(value, list | tuple) or not value:
        faults.append(f'strategies: expected a list of strategies, or "all", but got {value!r}')
        return ()
    strategy_sections = tuple(
        _choice(
            f"strategies[{i}]",
            item.strip() if isinstance(item, str) else item,
            lambda name, options: strategies.build(name, **options),
            faults,
            also=("label",),
        )
        for i, item in enumerate(value)
    )
    labels = [choice.label for choice in strategy_sections if choice.name]
    faults += [
        f"strategies: expected each to be there once but got {label!r} {labels.count(label)} "
        "times. Give variants of one strategy a `label` each."
        for label in dict.fromkeys(labels)
        if labels.count(label) > 1
    ]
    faults += [
        f"strategies: expected labels that name folders ({FOLDER_NAMES}) but got {label!r}"
        for label in labels
        if not names_a_folder(label)
    ]
    return strategy_sections


def names_or_mappings(text: str) -> Any:
    """Return strategies with commas between: names, or mappings in braces as YAML writes them.

    Raises:
        ConfigError: braces or brackets around what is no YAML.
    """
    if not re.search(r"[\[{]", text):
        return text.split(",")
    return read_yaml(text if text.lstrip().startswith("[") else f"[{text}]", repr(text))


def _seeds(value: Any, faults: list[str]) -> tuple[int, ...]:
    if isinstance(value, list | tuple):
        good = value and all(_whole(v) and v >= 0 for v in value) and len({*value}) == len(value)
        if good:
            return tuple(value)
    elif _whole(value) and 1 <= value <= _MOST_SEEDS:
        return tuple(range(value))
    faults.append(
        f"seeds: expected how many (1 to {_MOST_SEEDS:,}) or a list of them but got {value!r}"
    )
    return ()


def _count(path: str, value: Any, least: int, faults: list[str]) -> int:
    if _whole(value) and value >= least:
        return int(value)
    faults.append(f"{path}: expected a whole number of at least {least} but got {value!r}")
    return least


def _device(value: Any, faults: list[str]) -> Any:
    if value not in get_args(Device):
        faults.append(f"device: expected one of {', '.join(get_args(Device))} but got {value!r}")
    return value


def _settings(kind: type[Settings], value: Any, faults: list[str]) -> Settings:
    if not isinstance(value, Mapping):
        faults.append(f"{kind.name}: expected a mapping but got {value!r}")
        return kind()
    if kind is ExperimentSettings and "seed" in value:
        faults.append("experiment.seed: say which seeds under `seeds`, for all strategies alike")
        value = {k: v for k, v in value.items() if k != "seed"}
    if kind is TrainingSettings and "recipe" in value:
        name, value = value["recipe"], {k: v for k, v in value.items() if k != "recipe"}
        if isinstance(name, str) and name in RECIPES:
            value = with_recipe(name, value)
        else:
            faults.append(f"training.recipe: expected one of {', '.join(RECIPES)} but got {name!r}")
    also = ("recipe",) if kind is TrainingSettings else ()
    good: dict[str, Any] = {}
    for key, text in value.items():  # one by one: a fault in one must not hide another's
        try:
            good |= registry.check_options(kind.name, kind, {key: text}, ())
        except ConfigError as error:
            faults.extend(_faults(kind.name, error, also))
    try:
        return kind(**good)
    except ConfigError as error:
        faults.extend(_faults(kind.name, error, also))
        return kind()


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _faults(path: str, error: ConfigError, also: tuple[str, ...] = ()) -> list[str]:
    """Return the messages of an error, each led by the path of the value it is about. also: keys of
    the section that are no options.
    """
    if isinstance(error, registry.OptionsError):
        return [problem.at(path, also) for problem in error.problems]
    return [f"{path}: {line}" for line in str(error).splitlines()]


def _fair() -> Iterator[str]:
    """Return the strategies that see no label before it is given: those that `all` stands for."""
    return (name for name, kind in strategies.REGISTRY.items() if not kind.sees_labels)
