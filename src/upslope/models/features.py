"""The penultimate features of any classifier: what its last linear layer takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.models.base import NamesHead


def head(model: nn.Module) -> nn.Linear:
    """The linear layer that makes the logits: the last one that `model` registers.

    A model whose layers are registered in another order than they run names its own in an
    attribute `head_name`, e.g. `"classifier.2"`. `with_features` checks that it was right.

    Raises:
        ModelError: `model` has no linear layer, or names one that is none.
    """
    name = model.head_name if isinstance(model, NamesHead) else None
    if isinstance(name, str):
        head_module = dict(model.named_modules()).get(name)
        if not isinstance(head_module, nn.Linear):
            raise ModelError(
                f"Expected `head_name` of {type(model).__name__} to name an nn.Linear but "
                f"{name!r} is {type(head_module).__name__}."
            )
        return head_module
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ModelError(
            f"Expected {type(model).__name__} to have a linear layer that makes its logits, whose "
            "input serves as features, but it has no nn.Linear. Use a strategy without features."
        )
    return linears[-1]


def mean_over_positions(features: Tensor) -> Tensor:
    """Return features with their positions averaged: (n, d, ...) -> (n, d)."""
    return features.flatten(start_dim=2).mean(dim=2) if features.ndim > 2 else features


def with_features(model: nn.Module, x: Any) -> tuple[Any, Tensor]:
    """(outputs of `model(x)`, input of its head): features are (n, d).

    Grad mode and train mode are the caller's. The hook is gone when this returns or raises.

    Raises:
        ModelError: the head did not run exactly once, or what it gave is not what the model
            returned, so that its input would not be the features behind the logits.
    """
    layer = head(model)
    records: list[tuple[Tensor, Tensor]] = []

    def keep(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        records.append((args[0], output))

    handle = layer.register_forward_hook(keep)
    try:
        outputs = model(x)
    finally:
        handle.remove()
    advice = "Name the layer that makes the logits in an attribute `head_name` of the model."
    if len(records) != 1:
        raise ModelError(
            f"Expected the last linear layer of {type(model).__name__} to run once in a forward "
            f"pass but it ran {len(records)} times. {advice}"
        )
    features, network_outputs = records[0]
    if not any(_same(network_outputs, tensor) for tensor in _tensors(outputs)):
        raise ModelError(
            f"Expected the last linear layer of {type(model).__name__} to make the output of the "
            f"model but its output, of shape {tuple(network_outputs.shape)}, is changed or not "
            "returned. "
            f"{advice}"
        )
    return outputs, features


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.data_ptr() == b.data_ptr())


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The tensors that a model may return: one, a tuple, or a mapping of them."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, (tuple, list)):
        for value in outputs:
            yield from _tensors(value)
