"""Random numbers of a model's own, seen where they are drawn, and put in the place of others.

A pass of fewer samples draws other numbers than one of the whole batch, and so cannot be held
against it. Two passes can be compared all the same: if they draw as many numbers in the same order,
which `DrawsLog` tells, they are replayed; and if every draw gives the same number in every place,
whatever there is beside it (`ConstantDraws`), a sample meets the same numbers in every company.

Called by `passes`, `mixing` and `independence`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

_WITHOUT_TAG = frozenset({"random", "random_", "binomial", "_sample_dirichlet"})
"""Operators that draw without torch's tag for it."""

_MOST = 20_000
"""Draws of one pass: a loop that draws until it likes a number may never like a constant one."""

HIGH, LOW = 0.6, 0.4
"""Quantiles: either half of the entries is kept, however a model compares them with a rate."""


Quantiles = tuple[float, float]


def draws(func: Any) -> bool:
    """Return whether an operator of torch (an overload) may draw random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags or _name_of(func) in _WITHOUT_TAG


def _name_of(func: Any) -> str:
    name: str = func._schema.name
    return name.rpartition("::")[2]


class _OtherGenerators:
    """The states of NumPy's and Python's generators, to be compared."""

    def __init__(self) -> None:
        name, keys, *rest = np.random.get_state()
        self._state = (name, np.asarray(keys).tobytes(), *rest), random.getstate()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OtherGenerators) and self._state == other._state

    __hash__ = None  # type: ignore[assignment]


class DrawsMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator that draws random numbers, in Python and behind it; a `Watch`."""

    others: _OtherGenerators | None = None
    """How the pass has left the generators of NumPy and Python."""

    def mark(self, tensor: Tensor) -> Tensor:
        """Return one of the batch's tensors as it is."""
        return tensor

    def __exit__(self, *error: Any) -> None:
        """Stop seeing the operators of torch."""
        self.others = _OtherGenerators()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator, and hand on what it draws."""
        out = func(*args, **(kwargs or {}))
        return self.on_draw(func, args, kwargs or {}, out) if draws(func) else out

    def on_draw(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """Return what an operator that draws is to put out. out: what it has put out."""
        raise NotImplementedError


class DrawsLog(DrawsMode):  # type: ignore[no-untyped-call]
    """Takes note of what is drawn: passes with equal logs meet the same numbers when replayed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log: list[tuple[str, tuple[Any, ...], int]] = []

    def on_draw(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:  # noqa: ARG002
        """Take note of one draw; see `DrawsMode`."""
        shapes = (tuple(x.shape) for x in tree_flatten(out)[0] if isinstance(x, Tensor))
        # Some laws take as many numbers of the generator as their data ask for.
        state = torch.get_rng_state().numpy().tobytes()
        self.log.append((str(func), tuple(shapes), hash(state)))
        return out

    def is_replay_of(self, other: DrawsLog) -> bool:
        """Whether two passes from the same state have met the same numbers in the same places."""
        return self.log == other.log and self.others == other.others


class ConstantDraws(DrawsMode):  # type: ignore[no-untyped-call]
    """Makes every draw give the same number in every place, whatever the size of the batch.

    quantiles: of the distribution that is drawn from, in (0, 1). They alternate along the last
    dimension of what has several, so that a model that drops entries drops some.
    """

    def __init__(self, quantiles: Quantiles = (HIGH, LOW)):
        super().__init__()  # type: ignore[no-untyped-call]
        self._quantiles, self._count = quantiles, 0
        self.is_complete = True
        """Whether every operator that drew has been made to give constant numbers."""

    def on_draw(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """Put constant numbers in the place of random ones; see `DrawsMode`."""
        self._count += 1
        if self._count > _MOST:
            raise RuntimeError("a loop of draws does not end with constant numbers")
        name = _name_of(func)
        arguments = _arguments(func, args, kwargs)
        if arguments.get("dropout_p", arguments.get("dropout")) == 0:
            return out
        if name in {"native_dropout", "_fused_dropout"}:
            rate = arguments["p"] if name == "native_dropout" else 1 - arguments["p"]
            out[0].copy_(args[0] / max(1 - float(rate or 0), 1e-3))
            out[1].fill_(1)
            return out
        if name in {"rrelu_with_noise", "rrelu_with_noise_"}:
            noise = args[1]  # the factor of each entry, positive, and 1 for those above zero
            slopes = torch.full_like(noise, (arguments["lower"] + arguments["upper"]) / 2)
            slopes[out > 0] = 1
            out.mul_(slopes / noise)
            noise.copy_(slopes)
            return out
        law = _LAWS.get(name.removesuffix("_"))
        if law is None or not isinstance(out, Tensor):
            self.is_complete = False
            return out
        return out.copy_(law(_Draw(self._places(out), arguments, out))) if out.numel() else out

    def _places(self, out: Tensor) -> Tensor:
        """The quantile of each entry, of any shape that spreads over `out`."""
        first, second = self._quantiles
        # What has one dimension may have a number for each sample.
        if first == second or out.dim() < 2:
            return torch.full((), first, dtype=torch.float64, device=out.device)
        even = torch.arange(out.shape[-1], device=out.device) % 2 == 0
        return torch.where(even, first, second).double()


def _arguments(func: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operator by their names, those left out with their defaults."""
    values = dict(kwargs)
    for i, argument in enumerate(func._schema.arguments):
        if i < len(args):
            values[argument.name] = args[i]
        else:
            values.setdefault(argument.name, argument.default_value)
    return values


class _Draw(NamedTuple):
    """A draw: the quantile of each entry, the operator's arguments by name, what it has drawn."""

    u: Tensor
    given: dict[str, Any]
    out: Tensor


def _whole(draw: _Draw) -> Tensor:
    """Whole numbers between bounds."""
    low = draw.given.get("low", draw.given.get("from")) or 0
    high = draw.given.get("high", draw.given.get("to"))
    high = 1 << (1 if draw.out.dtype == torch.bool else 7) if high is None else high
    numbers: Tensor = torch.floor(low + draw.u * (high - low))
    return numbers


def _uniform(draw: _Draw) -> Tensor:
    low, high = (float(draw.given.get(name, i)) for i, name in enumerate(("from", "to")))
    return draw.u * (high - low) + low


def _normal(draw: _Draw) -> Tensor:
    mean, std = draw.given.get("mean", 0.0), draw.given.get("std", 1.0)
    numbers: Tensor = torch.special.ndtri(draw.u) * std + mean
    return numbers


def _cauchy(draw: _Draw) -> Tensor:
    tangent = torch.tan(math.pi * (draw.u - 0.5))
    numbers: Tensor = tangent * draw.given["sigma"] + draw.given["median"]
    return numbers


def _bernoulli(draw: _Draw) -> Tensor:
    # A rate that all entries share is that of a dropout: what it keeps can be looked at.
    rate = draw.given.get("p")
    if isinstance(rate, float):
        return torch.full_like(draw.out, float(rate > 0))
    rates: Tensor = draw.given["self"] if rate is None else rate
    return rates > 1 - draw.u


def _multinomial(draw: _Draw) -> Tensor:
    weights: Tensor = draw.given["self"]
    if draw.given["replacement"]:
        return weights.argmax(dim=-1, keepdim=True).expand_as(draw.out)
    return weights.topk(draw.out.shape[-1], dim=-1).indices


def _draws_of_samples(draw: _Draw) -> Tensor:
    rates: Tensor = draw.given["self"]
    return rates


_LAWS: dict[str, Callable[[_Draw], Tensor]] = {
    "rand": _uniform,
    "rand_like": _uniform,
    "uniform": _uniform,
    "randn": _normal,
    "randn_like": _normal,
    "normal": _normal,
    "log_normal": lambda draw: _normal(draw).exp(),
    "exponential": lambda draw: -torch.log1p(-draw.u) / draw.given["lambd"],
    "cauchy": _cauchy,
    "geometric": lambda draw: (torch.log1p(-draw.u) / math.log1p(-draw.given["p"])).ceil(),
    "random": _whole,
    "randint": _whole,
    "randint_like": _whole,
    "randperm": lambda draw: torch.arange(draw.given["n"], device=draw.out.device),
    "bernoulli": _bernoulli,
    "multinomial": _multinomial,
    "poisson": lambda draw: _draws_of_samples(draw).round(),
    "binomial": lambda draw: (draw.given["count"] * draw.given["prob"]).round(),
    "_standard_gamma": _draws_of_samples,
    "_sample_dirichlet": lambda draw: (
        _draws_of_samples(draw) / _draws_of_samples(draw).sum(-1, keepdim=True)
    ),
}
"""Of the operators that draw, without the underscore of those that write: what stands for it."""
