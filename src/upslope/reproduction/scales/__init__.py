"""The three scales, one YAML file each, and what reads them; called by `reproduction.run`.

A file declares studies, each what a configuration for `upslope compare` would hold, and says which
of them the artefacts read. YAML's anchors (`&main`) and merges (`<<: *main`) say what studies have
in common. A value `$norm`, `$retrain`, `$other_retrain` or `$candidates` is the variant's.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

from upslope import registry
from upslope.reproduction.scales.schema import (
    ENTROPY,
    EXPECTED,
    GRADIENT_NORM_STRATEGIES,
    MC_DROPOUT,
    VARIANTS,
    InfluenceOptions,
    Scale,
    Study,
    Variant,
)

__all__ = [
    "ENTROPY",
    "EXPECTED",
    "GRADIENT_NORM_STRATEGIES",
    "MC_DROPOUT",
    "SCALES",
    "VARIANTS",
    "InfluenceOptions",
    "Scale",
    "Study",
    "Variant",
    "read_scale",
]

SCALES: Mapping[str, str] = {
    "smoke": "smoke.yaml",
    "cpu": "cpu.yaml",
    "paper": "paper.yaml",
}
"""Name -> its file in this folder."""


def read_scale(name: str, variant: str = "code") -> Scale:
    """Read the scale of this name from its file, in one variant.

    name: a key of `SCALES`. variant: a key of `VARIANTS`.

    Returns: the scale; the configurations of its studies are not checked yet.

    Raises:
        ConfigError: an unknown scale or variant.
    """
    file = registry.lookup("scale", SCALES, name)
    side: Variant = registry.lookup("variant", VARIANTS, variant)
    text = files(__name__).joinpath(file).read_text(encoding="utf-8")
    document = _fill_in(yaml.safe_load(text), side)
    artefacts = document["artefacts"]
    return Scale(
        name,
        side,
        {key: _study(key, scale_section) for key, scale_section in document["studies"].items()},
        figure_1=_groups(artefacts["figure_1"]),
        figure_2=_groups(artefacts["figure_2"]),
        figure_4=_groups(artefacts["figure_4"]),
        class_wise=artefacts["class_wise"],
        deeper=artefacts["deeper"],
        influence=InfluenceOptions(**artefacts["influence"]),
    )


def _study(name: str, scale_section: Mapping[str, Any]) -> Study:
    document = {key: value for key, value in scale_section.items() if key != "substitute"}
    return Study(name, document, scale_section.get("substitute"))


def _groups(lists: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(group) for group in lists)


def _fill_in(value: Any, variant: Variant) -> Any:
    """Replace every string `$name` in plain data by the attribute of the variant."""
    if isinstance(value, dict):
        return {key: _fill_in(entry, variant) for key, entry in value.items()}
    if isinstance(value, list):
        return [_fill_in(entry, variant) for entry in value]
    if isinstance(value, str) and value.startswith("$"):
        return getattr(variant, value.removeprefix("$"))
    return value
