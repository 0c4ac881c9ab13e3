"""Sketches of gradients as options: whose gradient, of which parameters, in how many numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upslope.pool import Need

Loss = Annotated[
    Literal["entropy", "likely-label"],
    Field(description="whose gradient: the entropy's, or the loss's at the most probable class"),
]
Dim = Annotated[int, Field(ge=1, description="numbers that stand for a gradient")]


def sketch_need(loss: str, dim: int, parameters: str | None, *, labelled: bool = False) -> Need:
    """The signal of these sketches; one projection for all, so that they compare."""
    return Need.of(
        "gradient-sketch", loss=loss, dim=dim, seed=0, parameters=parameters, labelled=labelled
    )
