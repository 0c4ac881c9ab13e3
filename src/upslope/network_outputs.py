"""Tell what a network computes beside its modules, by its outputs for made-up inputs.

A `forward` may take a function for another without any module or attribute that would show it. So
the network is run once with made-up weights and inputs, the same on every machine and in every
version of libraries, and a few numbers of what comes out are kept.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from upslope.frozen.probe import same_summary, summary
from upslope.seeds import deterministic, global_generator

_CPU = torch.device("cpu")
_SHIFT = 1e-5
"""Relative change of weights that must not show in the numbers, over a hundred times what float32
rounds: other machines round in other places, and a network may magnify that."""
_UNDER_COMPILER = "OptimizedModule"
"""Class of a network under `torch.compile`, whose first run takes minutes."""


def describe_outputs(build: Callable[[], nn.Module], sample: Callable[[], Tensor]) -> list[float]:
    """Return four numbers of a network's outputs in eval mode; none where they would not last.

    They would not for outputs that are random, or that tiny changes of weights change, and for
    networks that do not run on a CPU in float32, in which those of other precisions are run too:
    the rounding of half precision differs between machines.

    build: makes the network. sample: gives a prepared batch, of which the form alone counts.
    """
    model = build()
    if any(type(module).__name__ == _UNDER_COMPILER for module in model.modules()):
        return []
    try:
        inputs = _made_up_inputs(sample())
        with warnings.catch_warnings(), torch.no_grad(), deterministic(_CPU):
            warnings.simplefilter("ignore")  # a training says them again
            # A copy, since the function may return parts that it keeps.
            model = copy.deepcopy(model).cpu().float().eval()
            one, other = (_outputs(model, inputs, shift) for shift in (0.0, _SHIFT))
    except Exception:  # of the user's code: whatever hinders a training too is told there
        return []
    return one if same_summary(one, other) else []


def same_outputs(one: list[float], other: list[float]) -> bool:
    """Return whether two descriptions of outputs are of one network; none tells nothing."""
    return not (one and other) or same_summary(one, other)


def _outputs(model: nn.Module, inputs: Tensor, shift: float) -> list[float]:
    """Return the numbers of a network's outputs, with weights and random numbers of its own for
    each relative shift of all weights.
    """
    for number, parameter in enumerate(model.parameters()):
        weights = _made_up_weights(parameter, number)
        parameter.copy_(weights * (1 + shift * _wave(tuple(parameter.shape), 2.1)))
    with global_generator(int(shift > 0), "made-up outputs", device=_CPU):
        parts = [t.flatten() for t in _tensors(model(inputs)) if t.is_floating_point()]
    return summary(torch.cat(parts)[None])


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The tensors in what a network returns."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping | list | tuple):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(part)


def _made_up_inputs(sample: Tensor) -> Tensor:
    """Two samples in the form of `sample`, (n, ...): waves in float32, or the token that every
    vocabulary has."""
    shape = (2, *sample.shape[1:])
    if not sample.is_floating_point():
        return torch.ones(shape, dtype=sample.dtype)
    return _wave(shape, 0.7).float()


def _made_up_weights(parameter: Tensor, number: int) -> Tensor:
    """Waves of another length for each parameter, that keep the size of what passes through."""
    inputs = parameter[0].numel() if parameter.ndim > 1 and len(parameter) else 1
    size = math.sqrt(2 / max(1, inputs))
    return size * _wave(tuple(parameter.shape), 1 + 0.1 * (number % 17))


def _wave(shape: tuple[int, ...], frequency: float) -> Tensor:
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.cos(frequency * numbers).reshape(shape)
