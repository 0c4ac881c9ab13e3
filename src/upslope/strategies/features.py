"""Which features a strategy looks at: the task model's, those of the user's own extractor, or ones
learnt from the pool without labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from upslope.errors import ConfigError
from upslope.pool import Need

CONTRASTIVE = "contrastive"

Features = Annotated[
    str | None,
    Field(
        pattern=f":|^{CONTRASTIVE}$",
        title=f'a function as "package.module:function", or "{CONTRASTIVE}", or nothing',
        description="package.module:function of a feature extractor; contrastive: learnt from the "
        "pool without labels; none for the task model's",
    ),
]
Steps = Annotated[
    int | None,
    Field(ge=1, description="of features=contrastive; none: 50 passes, at most 1000 steps"),
]


def features_need(extractor: str | None, steps: int | None) -> Need:
    """The signal of these features, of the labelled set too.

    Raises:
        ConfigError: steps of a training that there is none of.
    """
    if steps is not None and extractor != CONTRASTIVE:
        raise ConfigError(
            f"Expected `steps` to be left out where features are not {CONTRASTIVE} but got "
            f"{steps}. Set features to {CONTRASTIVE}, or leave the steps out."
        )
    if extractor is None:
        return Need.of("features", labelled=True)
    if extractor == CONTRASTIVE:
        return Need.of("contrastive-features", steps=steps, labelled=True)
    return Need.of("extracted-features", extractor=extractor, labelled=True)
