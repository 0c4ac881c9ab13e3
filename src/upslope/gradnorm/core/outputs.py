"""Tensors in the outputs of models, wherever they are, and checks of losses."""

from __future__ import annotations

import copy
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from upslope.errors import GradientNormError

_DEPTH = 4
"""Objects within objects that are opened."""


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of numbers in what a model returned: a tensor, a container or an object."""
    leaves = tree_flatten(outputs)[0]
    seen: set[int] = set()
    for _ in range(_DEPTH):  # an object in an object: an independent distribution, say
        objects = [leaf for leaf in leaves if _is_object(leaf) and id(leaf) not in seen]
        seen.update(map(id, objects))
        leaves += [inner for leaf in objects for inner in tree_flatten(vars(leaf))[0]]
    return [
        t
        for t in leaves
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()) and t.dim() > 0
    ]


def copy_objects(outputs: Any) -> Any:
    """Return outputs whose objects are copies, for a loss to read: some keep what they are asked.

    A distribution computes its probabilities when it is first asked for them, and then holds one
    tensor more than a model puts out. The tensors themselves are the same.
    """
    return tree_map(lambda leaf: copy.copy(leaf) if _is_object(leaf) else leaf, outputs)


def _is_object(value: Any) -> bool:
    """Whether a value may hold tensors in its attributes."""
    closed = (Tensor, nn.Module, type, FunctionType, ModuleType)
    return hasattr(value, "__dict__") and not isinstance(value, closed)


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
