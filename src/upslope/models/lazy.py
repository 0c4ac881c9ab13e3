"""Lazy layers (`nn.LazyLinear` and its kind) get their sizes before anything looks at a network.

Their sizes follow from the shape of a sample, their weights from the generator as those of any
layer; one forward pass in eval mode settles both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from upslope.autodiff import evaluating
from upslope.errors import ModelError
from upslope.memory import raise_memory_error


def lazy_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers whose sizes are open, each with its kind."""
    return [
        f"{name or 'the network'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if any(
            is_lazy(tensor)
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        )
    ]


def initialise(model: nn.Module, *samples: Tensor) -> nn.Module:
    """Run the first of `samples`, prepared batches, that the network takes; none if none is lazy.

    The mode of every module is as before afterwards.

    Raises:
        ModelError: the network takes none of them, or a layer that no sample reaches stays lazy.
    """
    layers = lazy_layers(model)
    if not layers:
        return model
    reason = ""
    for sample in samples:
        try:
            with evaluating(model), torch.no_grad():
                model(sample)
        except Exception as error:  # whatever a network of somebody else's may raise
            raise_memory_error(error)
            reason = reason or f"{type(error).__name__}: {error}"
        if not lazy_layers(model):
            return model
    shape = tuple(samples[0].shape)
    raise ModelError(
        f"Expected a forward pass of shape {shape} to give the lazy layers of "
        f"{type(model).__name__} their sizes but {', '.join(layers[:3])} "
        f"{'have' if len(layers) > 1 else 'has'} none after it"
        f"{f', as it raised {reason}' if reason else ''}. Give these layers their sizes, "
        "LazyLinear as Linear."
    )


def initialise_by_shape(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Initialise lazy layers with a batch of zeros: numbers, or else integers, as tokens are."""
    if not lazy_layers(model):
        return model
    shape = (2, *input_shape)
    return initialise(model, torch.zeros(shape), torch.zeros(shape, dtype=torch.int64))


def without_lazy_layers(
    factory: Callable[[], nn.Module], sample: Callable[[], Tensor]
) -> Callable[[], nn.Module]:
    """Return the factory with a forward pass after it where it leaves lazy layers.

    sample: gives a prepared batch of two or more; called only where it is needed.
    """
    return partial(_initialise, factory, sample)


def _initialise(factory: Callable[[], nn.Module], sample: Callable[[], Tensor]) -> nn.Module:
    model: object = factory()  # of the user's, which may return anything
    if not isinstance(model, nn.Module):
        got = "nothing" if model is None else type(model).__name__
        raise ModelError(
            f"Expected the function `model` to return a network, a torch.nn.Module, but it "
            f"returned {got}. End it with `return network`."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(
            f"Expected {type(model).__name__} to have weights with numbers but they lie on the "
            "meta device, which holds shapes alone. Make the network on the CPU."
        )
    return initialise(model, sample()) if lazy_layers(model) else model
