"""Losses that are modules, or hold some: their state is put back as that of a model is.

A loss may keep a centre, a running mean or a count. The engine calls it more often than its caller
does, with outputs of its own making; each call starts from the same state, which is there in the
end.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from upslope.gradnorm.core.model_io import Loss
from upslope.gradnorm.core.state.inventory import modules_of
from upslope.gradnorm.core.state.model_state import ModelState
from upslope.gradnorm.core.state.restoring import restoring

_DEPTH = 4
"""Functions within functions that are opened."""


class StatefulLoss:
    """A loss each of whose calls starts from the same state.

    loss: the caller's own. state: of the modules that it holds.
    """

    def __init__(self, loss: Loss, state: ModelState):
        self.loss, self._state = loss, state
        self.label_free = getattr(loss, "label_free", False)

    def __call__(self, outputs: Any) -> Tensor:
        """Return the losses of outputs, (n,)."""
        with torch._C.DisableTorchFunction():  # what is watched are the operators of the loss alone
            self._state.begin_pass()
        losses = self.loss(outputs)
        with torch._C.DisableTorchFunction():
            self._state.end_pass()
        return losses


def keeping_loss(loss: Loss, model: nn.Module) -> contextlib.AbstractContextManager[Loss]:
    """Give the loss to call in place of a caller's; what its modules keep is put back at the end.

    loss: the caller's. model: the network, whose own modules are left to what restores it: a loss
    may read what the last pass has left in them.
    """
    modules = modules_in(loss)
    if modules:
        model_ids = {id(module) for module in modules_of(model)}
        modules = [module for module in modules if id(module) not in model_ids]
    return _keeping(loss, model, modules) if modules else contextlib.nullcontext(loss)


@contextlib.contextmanager
def _keeping(loss: Loss, model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[Loss]:
    """Give the loss to call, as `keeping_loss`. modules: that it holds beside the model's."""
    with restoring(ModelState(*modules, apart_from=modules_of(model))) as state:
        yield StatefulLoss(loss, state)


def modules_in(loss: Any) -> list[nn.Module]:
    """Return the modules that a loss is, or reaches by its closure, arguments or global names."""
    modules: dict[int, nn.Module] = {}
    _collect_modules(loss, _DEPTH, modules, set())
    return list(modules.values())


# No function in the one above: it would refer to itself, and each call would leave a circle that
# Python has to look for.
def _collect_modules(
    value: Any, depth: int, modules: dict[int, nn.Module], visited_ids: set[int]
) -> None:
    """Add the modules that a value is or reaches. visited_ids: of what was opened before."""
    if isinstance(value, nn.Module):
        modules.setdefault(id(value), value)
    elif depth > 0 and id(value) not in visited_ids:
        visited_ids.add(id(value))
        for part in _parts(value):
            _collect_modules(part, depth - 1, modules, visited_ids)


def _parts(value: Any) -> Iterable[Any]:
    """What a function, an object or a container can reach."""
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple, set)):
        return value
    code = getattr(value, "__code__", None)
    if not isinstance(code, CodeType):
        has_no_parts = isinstance(value, (Tensor, type)) or not isinstance(
            getattr(value, "__dict__", None), dict
        )
        return () if has_no_parts else vars(value).values()
    cells = []
    for cell in getattr(value, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # a name that has no value yet
            cells.append(cell.cell_contents)
    defaults = getattr(value, "__defaults__", None) or ()
    by_name = (getattr(value, "__kwdefaults__", None) or {}).values()
    itself = getattr(value, "__self__", None)
    return (*cells, *_globals_of(value, code), *defaults, *by_name, itself)


def _globals_of(function: Any, code: CodeType) -> list[Any]:
    """Return what a function can reach by global names. code: its own."""
    names = getattr(function, "__globals__", {})
    if names.get("__name__", "").startswith("upslope."):
        return []  # losses of Upslope hold what they are given, and no modules of their own
    # Global names lead to whole libraries: of those, modules and functions of this file alone.
    values = [names[name] for name in _names_in(code) if name in names]
    return [
        part
        for part in values
        if isinstance(part, (nn.Module, functools.partial, list, tuple, dict))
        or getattr(part, "__globals__", None) is names
    ]


def _names_in(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            names |= _names_in(inner)
    return names
