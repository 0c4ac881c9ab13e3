"""Outputs that say nothing, as those of a diverged network: refused before figures are made.

A comparison with NaN is false and its largest number the first: figures of such outputs would look
like any others.
"""

from __future__ import annotations

from torch import Tensor

from upslope.errors import ModelError


def refuse_unknown(is_unknown: Tensor, what: str, are: str = "NaN") -> None:
    """Raise ModelError where the outputs for some samples say nothing.

    is_unknown: (n, ...), whether they do not. what: that they would have to give, for the message.
    are: what they are instead.
    """
    samples = is_unknown.flatten(1).any(dim=1) if is_unknown.ndim > 1 else is_unknown
    if count := int(samples.sum()):
        raise ModelError(
            f"Expected outputs that give {what} but those of {count} of {len(samples)} samples are "
            f"{are}: the network has diverged, or its inputs are not finite. Lower `training.lr`, "
            "and look at the inputs."
        )
