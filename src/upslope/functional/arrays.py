"""The arrays that functions of strategies take: their checks, and the signals read from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upslope.errors import DataError
from upslope.pool import Need
from upslope.signals import mc_dropout, probabilities
from upslope.signals.temperature import scale_logits

Array = NDArray[Any] | Tensor


@dataclass(frozen=True)
class Argument:
    """An array that functions take. help: one line for their docstrings; dimensions: how many it
    has; posterior: its last dimension sums to 1; example: Python that makes one of n rows."""

    name: str
    help: str
    dimensions: int
    posterior: bool
    example: str


PROBABILITIES = Argument(
    "probabilities",
    "(n, C) posteriors, rows that sum to 1",
    2,
    True,
    "rng.dirichlet(np.ones(3), size={n})",
)

FEATURES = Argument(
    "features",
    "(n, d) features, as of the last layer but one",
    2,
    False,
    "rng.normal(size=({n}, 8))",
)

GRADIENTS = Argument(
    "gradients",
    "(n, d) gradients, or sketches of them",
    2,
    False,
    "rng.normal(size=({n}, 8))",
)

POSTERIORS = Argument(
    "posteriors",
    "(n, T, C) posteriors of T networks: dropout passes, or members of a committee",
    3,
    True,
    "rng.dirichlet(np.ones(3), size=({n}, 6))",
)

ARGUMENTS = (PROBABILITIES, FEATURES, GRADIENTS, POSTERIORS)
"""In the order in which functions take them."""


Reader = Callable[[Need, Tensor], Tensor]


def _as_it_is(need: Need, values: Tensor) -> Tensor:  # noqa: ARG001
    return values


def _posterior(need: Need, p: Tensor) -> Tensor:
    """The posterior at the temperature of the need. p: (n, ..., C)."""
    temperature: Any = dict(need.options).get("temperature", 1.0)
    if temperature == 1:
        return p
    # A probability of 0 stays 0, as the logarithm of it is -inf.
    return scale_logits(p.log(), temperature).softmax(dim=-1)


def _measure(measures: Mapping[str, Callable[[Tensor], Tensor]]) -> Reader:
    return lambda need, p: measures[str(dict(need.options)["measure"])](_posterior(need, p))


SIGNALS: dict[str, tuple[Argument, Reader]] = {
    "probabilities": (PROBABILITIES, _posterior),
    "uncertainty": (PROBABILITIES, _measure(probabilities.MEASURES)),
    "features": (FEATURES, _as_it_is),
    "gradient-sketch": (GRADIENTS, _as_it_is),
    "mc-posteriors": (POSTERIORS, _as_it_is),
    "mc-dropout": (POSTERIORS, _measure(mc_dropout.MEASURES)),
    "committee": (POSTERIORS, lambda _, p: mc_dropout.bald(p)),
}
"""Signal -> the array that it is read from, and how."""


def as_tensor(values: Any, argument: Argument, name: str, *, least: int = 1) -> Tensor:
    """Return an array as a tensor on the CPU, floats of 32 or 64 bits.

    least: rows that it has at least.

    Raises:
        DataError: values that are no numbers, entries under a mask, another number of dimensions,
            or rows that are no posteriors.
    """
    if np.ma.is_masked(values):
        raise DataError(
            f"Expected `{name}` to be {argument.help} but entries are under a mask: what stands "
            "below it would be read. Fill them, as by `values.filled(...)`, or leave the rows out."
        )
    if not isinstance(values, Tensor):
        try:
            values = np.asarray(values)
        except ValueError as error:
            raise DataError(
                f"Expected `{name}` to be {argument.help} but got rows that make no array: {error}."
            ) from error
    is_real = not values.is_complex() if isinstance(values, Tensor) else values.dtype.kind in "biuf"
    if not is_real:
        raise DataError(
            f"Expected `{name}` to be {argument.help}, of numbers, but got values of the type "
            f"{values.dtype}. Convert it, as by np.asarray(values, dtype=float)."
        )
    tensor = values.detach().to_dense() if isinstance(values, Tensor) else _from_numpy(values)
    tensor = tensor.cpu()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    if tensor.ndim != argument.dimensions or len(tensor) < least:
        raise DataError(
            f"Expected `{name}` to be {argument.help} but got shape {tuple(tensor.shape)}."
        )
    if argument.posterior and len(tensor):
        low, total = float(tensor.min()), tensor.sum(dim=-1)
        if low < 0 or not bool(((total - 1).abs() < 1e-2).all()):
            finite = bool(torch.isfinite(tensor).all())
            raise DataError(
                f"Expected the rows of `{name}` to be posteriors, of at least 0 and a sum of 1, "
                f"but got values from {low:g} and sums from {float(total.min()):g} to "
                f"{float(total.max()):g}. "
                + ("Logits become posteriors by a softmax." if finite else "Look at NaN values.")
            )
    return tensor


def _from_numpy(values: NDArray[Any]) -> Tensor:
    """Return a tensor of the same numbers, in the same memory where torch can have it: with bytes
    in this machine's order, no negative stride, and leave to write."""
    kind = np.dtype(np.float64) if values.dtype.itemsize > 8 else values.dtype.newbyteorder("=")
    values = values.astype(kind, copy=False)
    is_shared = values.flags.writeable and min(values.strides, default=0) >= 0
    return torch.from_numpy(values if is_shared else values.copy(order="C"))


def size_of(arrays: dict[str, Tensor]) -> int:
    """The number of rows. Raises DataError where arrays differ in it."""
    sizes = {name: len(values) for name, values in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(
            "Expected arrays of one length, a row per sample, but got "
            f"{', '.join(f'{name} {size}' for name, size in sizes.items())}."
        )
    return next(iter(sizes.values()), 0)


def check_widths(arrays: dict[str, Tensor], labelled: dict[str, Tensor]) -> None:
    """Raise DataError where rows of labelled samples are not as long as those of candidates."""
    for name, values in labelled.items():
        if values.shape[1:] != arrays[name].shape[1:]:
            raise DataError(
                f"Expected `labelled_{name}` to have rows as those of `{name}`, "
                f"{tuple(arrays[name].shape[1:])}, but got {tuple(values.shape[1:])}."
            )
