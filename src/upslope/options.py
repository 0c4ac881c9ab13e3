"""Options: frozen dataclasses whose fields are checked whenever an instance is made.

Types, ranges and help texts are written once, in the annotation of the field, as `upslope.registry`
reads them: `share: Annotated[float, Field(gt=0, le=1, description="...")] = 1.0`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from upslope import registry


@dataclass(frozen=True)
class Options:
    """Base of the strategies and the signals: a name in a table, and options.

    Raises:
        ConfigError: options of a wrong type or out of range; all such faults in one message.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for key, value in registry.check_options(self.name, type(self), given, ()).items():
            object.__setattr__(self, key, value)
