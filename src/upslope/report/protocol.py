"""The resolved configuration and the machine of a study, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def protocol_text(config: Mapping[str, Any]) -> str:
    """Return a configuration as YAML; empty where runs carry none."""
    if not config:
        return ""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def environment_lines(environment: Mapping[str, Any]) -> list[list[str]]:
    """Return versions and hardware as pairs of a name and a text.

    A run that no engine made has none to name.
    """
    return [
        [str(key), _flat(value)]
        for key, value in environment.items()
        if key != "engine" or value is not None
    ]


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(v) for v in value)
    return "not known" if value is None else str(value)
