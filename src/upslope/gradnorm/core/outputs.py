"""Tensors in the outputs of models, wherever they are, and checks of losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of numbers in what a model returned: a tensor, a container or an object."""
    leaves = tree_flatten(outputs)[0]
    opened = (tree_flatten(vars(leaf))[0] if hasattr(leaf, "__dict__") else [] for leaf in leaves)
    leaves += [inner for inners in opened for inner in inners]
    return [
        t
        for t in leaves
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()) and t.dim() > 0
    ]


def device_of(outputs: Any) -> torch.device:
    """Return the device on which the outputs are."""
    tensors = tensors_in(outputs)
    return tensors[0].device if tensors else torch.device("cpu")


def check_losses(losses: Any, n: int, first: int = 0) -> None:
    """Refuse all but n finite losses. first: the index of the first sample, for the message.

    Raises:
        GradientNormError: the loss is reduced, of another shape, NaN or infinite.
    """
    if not isinstance(losses, Tensor) or losses.shape != (n,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        reduced = got == ()
        raise GradientNormError(
            f"Expected the loss to be one number per sample, shape ({n},), but got {got}. "
            + ('A reduced loss mixes the samples: use reduction="none".' if reduced else
               "Reduce what each sample holds (positions, pixels) and nothing else.")
        )  # fmt: skip
    if not bool(torch.isfinite(losses).all()):
        bad = (~torch.isfinite(losses)).nonzero().flatten()[:5].tolist()
        names = [first + i for i in bad]
        raise GradientNormError(
            f"Expected finite losses but those of samples {names} are {losses[bad].tolist()}. Look "
            "at these inputs, and at the model's weights."
        )
