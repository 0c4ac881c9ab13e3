"""Which features a strategy looks at: the task model's, or those of the user's own extractor."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from upslope.pool import Need

Features = Annotated[
    str | None,
    Field(
        pattern=":",
        description="package.module:function of a feature extractor; none for the task model's",
    ),
]


def features_need(extractor: str | None) -> Need:
    """The signal of these features, of the labelled set too."""
    if extractor is None:
        return Need.of("features", labelled=True)
    return Need.of("extracted-features", extractor=extractor, labelled=True)
