"""Options: frozen dataclasses whose fields are checked whenever an instance is made.

Types, ranges and help texts are written once, in the annotation of the field, as `upslope.registry`
reads them: `share: Annotated[float, Field(gt=0, le=1, description="...")] = 1.0`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from upslope import registry

LATER = MappingProxyType({"later": True})
"""Metadata of an option that earlier versions had not: runs leave it out of their record at its
default, so that those recorded before compare equal."""

Temperature = Annotated[
    Annotated[float, Field(gt=0)] | Literal["fitted"],
    Field(
        description="what the logits are divided by; fitted: by calibration, with a network "
        "trained on 70% of the labels, on the other 30%"
    ),
]
"""The temperature of a posterior that a score reads."""

Norm = Annotated[
    Literal["global", "tensor-sum"],
    Field(description="norm of the whole gradient, or the sum over parameter tensors of theirs"),
]
"""The norm of a gradient: that of the paper's text, or that of its code."""

Parameters = Annotated[
    str | None, Field(description="names or prefixes, as fc,layer4; or last; none for all")
]
"""The parameters by which a gradient is taken."""

Steps = Annotated[
    int | None,
    Field(ge=1, description="of training; none: 10 passes over the pool, at most 1000 steps"),
]
"""The length of a training without labels (`signals/fitting`)."""


def options_to_record(options: Any) -> dict[str, Any]:
    """Return the options of a dataclass, by name, as a run records them.

    Those that earlier versions had not (`LATER`) are left out at their defaults.
    """
    values = asdict(options)
    for field in fields(options):
        if field.metadata == LATER and values[field.name] == field.default:
            del values[field.name]
    return values


@dataclass(frozen=True)
class Options:
    """Base of the strategies and the signals: a name in a table, and options.

    Raises:
        ConfigError: options of a wrong type or out of range; all such faults in one message.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for key, value in registry.check_options(self.name, type(self), values, ()).items():
            object.__setattr__(self, key, value)
