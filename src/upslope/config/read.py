"""A configuration from a YAML file with assignments on top."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from upslope.config.inputs import with_size
from upslope.config.schema import Config, parse
from upslope.config.token_ids import check_tokenizer
from upslope.config.yaml_text import MOST_BYTES, read_yaml
from upslope.errors import ConfigError
from upslope.reading import check_regular
from upslope.registry import did_you_mean


def load(
    source: Path | str | Mapping[str, Any] | None = None,
    *,
    sets: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Return a configuration that was read, changed and checked.

    Args:
        source: a YAML file, the name of one that ships with Upslope (`list_shipped`), or what one
            holds; none for the defaults (digits).
        sets: assignments `a.b=c`, the value as YAML: `training.epochs=5`, `seeds=[1, 2]`.
        overrides: dotted keys with values, applied last; None values are left out.
        defaults: sections that take these values where nothing else states them.

    Raises:
        ConfigError: a file that cannot be read or is no YAML mapping; an assignment that is none;
            faults of the values, all together; a tokenizer that is not the network's.

    Example:
        >>> config = load("digits", sets=["training.epochs=5"])
        >>> config.data.name, config.training.epochs
        ('digits', 5)
    """
    if isinstance(source, Mapping):
        document = copy.deepcopy(dict(source))
    else:
        document = _read(Path(source)) if source is not None else {}
    assignments: list[tuple[str, Any]] = []
    for assignment in sets:
        key, sign, text = assignment.partition("=")
        if not sign or not key.strip():
            raise ConfigError(
                f"Expected --set to be like training.epochs=5 but got {assignment!r}."
            )
        assignments.append((key.strip(), read_yaml(text, f"the value of --set {key}")))
    assignments += [(key, value) for key, value in (overrides or {}).items() if value is not None]
    for key, value in sorted(assignments, key=_rank):
        _assign(document, key, value)
    config = with_size(parse({**(defaults or {}), **document}))
    check_tokenizer(config)
    return config


def list_shipped() -> dict[str, tuple[str, str]]:
    """Return name -> (what it is, its text) of the configurations that ship with Upslope.

    What it is stands in the comment at the head of each file.
    """
    configurations = {}
    for file in sorted(files("upslope").joinpath("configs").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            text = file.read_text(encoding="utf-8")
            head = text.partition("\n#\n")[0].splitlines()
            lines = [line.removeprefix("# ") for line in head if line.startswith("# ")]
            configurations[file.name.removesuffix(".yaml")] = (" ".join(lines), text)
    return configurations


def _read(path: Path) -> dict[str, Any]:
    if not path.exists() or (path.is_dir() and not path.suffix):
        names = list_shipped()
        if str(path) in names:
            return dict(read_yaml(names[str(path)][1], str(path)))
        if not path.exists():
            close = did_you_mean(path.stem, names)
            raise ConfigError(
                f"Expected a YAML file at {path}, or one of the configurations that ship with "
                f"Upslope, but there is none of that name{close or '.'} See `upslope list configs`."
            )
    try:
        check_regular(path)
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"Expected {path} to be YAML in UTF-8 but {error.reason} at byte {error.start}. Save "
            "it again in UTF-8."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Expected a YAML file at {path} but it cannot be read: {error}."
        ) from error
    document = read_yaml(text, str(path))
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"Expected {path} to hold a mapping of sections but got {type(document).__name__}."
        )
    return document


def _rank(assignment: tuple[str, Any]) -> tuple[int, bool]:
    """Return the place of an assignment: a whole section first, then a name, then its options.

    A name drops the options of another one, and must not drop those assigned in front of it.
    """
    key, _ = assignment
    parents, _, last = key.rpartition(".")
    return (key.count("."), not parents or last != "name")


def _assign(document: dict[str, Any], key: str, value: Any) -> None:
    """Set `document["a"]["b"]` for the path `a.b`; a section given as a name becomes a mapping.

    A new name drops the options of the old one: they were its own. `root` says where files lie,
    whatever reads them, and stays.
    """
    *parents, last = key.split(".")
    here = document
    for parent in parents:
        below = here.get(parent)
        if not isinstance(below, dict):
            below = {"name": below} if isinstance(below, str) else {}
        here[parent] = below
        here = below
    if parents and last == "name" and here.get("name") != value:
        root = {k: v for k, v in here.items() if k == "root"}
        here.clear()
        here.update(root)
    here[last] = value
