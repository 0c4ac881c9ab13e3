"""What goes into models and comes out of them and of losses: found wherever it is, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What a model takes, samples in dimension 0: a tensor, or a tuple or dict of them."""


def opened(inputs: Inputs) -> Inputs:
    """The inputs as what their tensors can be found in: a tokenizer's mapping is no `dict`."""
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The model's outputs."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def batch_size(inputs: Inputs) -> int:
    """n, read off the first tensor.

    Raises:
        GradientNormError: there is none.
    """
    tensors = [t for t in tree_flatten(opened(inputs))[0] if isinstance(t, Tensor) and t.dim() > 0]
    if not tensors:
        raise GradientNormError(
            "Expected `inputs` to be a tensor, or a tuple or dict of tensors, with the samples in "
            f"dimension 0 but got {type(inputs).__name__} without such a tensor."
        )
    return tensors[0].shape[0]


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of numbers in what a model returned: a tensor, a container or an object."""
    leaves = tree_flatten(outputs)[0]
    opened = (tree_flatten(vars(leaf))[0] if hasattr(leaf, "__dict__") else [] for leaf in leaves)
    leaves += [inner for inners in opened for inner in inners]
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.dim() > 0]


def device_of(outputs: Any) -> torch.device:
    """Where the outputs are."""
    found = tensors_in(outputs)
    return found[0].device if found else torch.device("cpu")


def check_losses(losses: Any, n: int, first: int = 0) -> None:
    """Refuse all but n finite losses. first: the index of the first sample, for the message.

    Raises:
        GradientNormError: the loss is reduced, of another shape, NaN or infinite.
    """
    if not isinstance(losses, Tensor) or losses.shape != (n,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        reduced = got == ()
        raise GradientNormError(
            f"Expected the loss to be one number a sample, shape ({n},), but got {got}. "
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
