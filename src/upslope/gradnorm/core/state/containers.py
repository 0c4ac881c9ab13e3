"""The containers of a module: dicts, lists and sets of what it keeps between two passes.

A pass may write a buffer, set an attribute, append to a list or fill a cache. All of these are
containers that can be reached from a module: its own attributes, its buffers, its parameters, and
what lies in them. `Walk` lists them once; a `Holder` is one of them, with what it held (`holders`).

A walk through 300 modules takes a twentieth of the time of a batch, and finds the same for every
batch. So it is remembered (`borrow_walk`). What a walk finds follows from the objects in the
containers that it opens, and from their classes. If every container holds the very objects that it
held before, the walk would go the same way again and end with the same lists; a model in which
anything else was set, be it one flag, is walked anew. The numbers and the memory of tensors decide
nothing here: `model_state` asks for these in every call.
"""

from __future__ import annotations

import gc
import operator
from collections import OrderedDict, deque
from collections.abc import Iterable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from upslope.gradnorm.core.state.holders import (
    Holder,
    HolderOfArray,
    HolderOfDicts,
    HolderOfHooks,
    HolderOfList,
    HolderOfScript,
    HolderOfSets,
    HolderOfTensorHooks,
)
from upslope.gradnorm.core.state.inventory import Inventory

_ATOMS = frozenset(
    {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
)
_HAS_NO_PARTS = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, partial)
"""Values that are no containers, whatever attributes they have."""

_MODULE_FIELDS = frozenset(vars(nn.Module())) - {"_buffers", "_parameters", "_modules"}
"""Attributes in which PyTorch keeps the hooks of a module."""

_DEPTH = 4
"""Containers within containers that are opened, below a module."""


class Walk:
    """All containers and tensors that can be reached from some modules.

    modules: the roots. apart_from: modules that stay closed, with their tensors. Hooks are listed
    and not opened: what they keep belongs to the caller.
    """

    def __init__(self, *modules: nn.Module, apart_from: Iterable[nn.Module] = ()):
        self.holders: list[Holder] = []
        self._dicts: list[dict[Any, Any]] = []
        self._sets: list[set[Any]] = []
        self.tensors: dict[int, Tensor] = {}
        self.modules: list[nn.Module] = []
        self.notes: dict[str, Any] = {}
        """What `model_state` has made of the walk, and can use again with it."""
        self._objects: list[Any] = []
        """The modules and objects that were opened."""
        self._attributes: list[dict[Any, Any]] = []
        """The dict of the attributes of each of them."""
        self._is_comparable = True
        """Whether all containers are of kinds whose contents are compared by identity."""
        self._visited_ids: set[int] = set()
        for module in apart_from:
            self._visited_ids.add(id(module))
            tensors = (*module._parameters.values(), *module._buffers.values())
            self._visited_ids.update(id(tensor) for tensor in tensors if tensor is not None)
        for module in modules:
            self._visit(module, _DEPTH)
        self.holders.append(HolderOfDicts(self._dicts))
        self.holders.append(HolderOfSets(self._sets))
        self.holders.append(HolderOfHooks(self.modules))
        self.holders.append(HolderOfTensorHooks(self.tensors.values()))

    @property
    def inventory(self) -> Inventory:
        """What the first of the modules is made of; as long as `notes` hold."""
        if "inventory" not in self.notes:
            self.notes["inventory"] = Inventory(self.modules[0])
        inventory: Inventory = self.notes["inventory"]
        return inventory

    def may_be_kept(self) -> bool:
        """Whether the walk may be remembered, once the call that made it is over.

        Only if all its tensors are parameters and buffers of modules. Others come and go with the
        passes of the caller, and would be kept in memory, graphs and all.
        """
        owned_ids: set[int] = set()
        for module in self.modules:
            owned_ids.update(map(id, module._parameters.values()))
            owned_ids.update(map(id, module._buffers.values()))
        return self._is_comparable and owned_ids >= self.tensors.keys()

    def give_root(self, model: nn.Module) -> None:
        """Put a module in the place of the first one."""
        self.modules[0] = model
        if "inventory" in self.notes:
            self.notes["inventory"].modules[0] = model

    def holds_still(self) -> bool:
        """Whether every container holds what it held, so that another walk would end the same."""
        return (
            vars(self.modules[0]) is self._dicts[0]
            and all(map(operator.is_, map(_ATTRIBUTES_OF, self._objects), self._attributes))
            and all(holder.is_as_before() for holder in self.holders)
        )

    def _visit(self, value: Any, depth: int, *, in_object: bool = False) -> None:
        if type(value) in _ATOMS:
            return
        if id(value) in self._visited_ids or isinstance(value, _HAS_NO_PARTS):
            return
        if isinstance(value, Tensor):
            self.tensors.setdefault(id(value), value)
            return
        if isinstance(value, nn.Module):
            self._visited_ids.add(id(value))
            self._visit_module(value)
        elif depth > 0:
            self._visit_container(value, depth, in_object)

    def _visit_module(self, module: nn.Module) -> None:
        self.modules.append(module)
        # Past `__getattr__` of the module: a lookup there costs as much as all that follows.
        attributes = vars(module)
        self._dicts.append(attributes)
        if module is not self.modules[0]:  # which the memory of walks must not keep alive
            self._objects.append(module)
            self._attributes.append(attributes)
        for name, value in attributes.items():
            if type(value) not in _ATOMS and name not in _MODULE_FIELDS:
                self._visit(value, _DEPTH)
        # The dicts of a compiled script are no dicts of Python, though they look like some.
        if isinstance(module, torch.jit.ScriptModule):
            self._is_comparable = False
            for name in ("_buffers", "_parameters"):
                dictionary = getattr(module, name)
                self.holders.append(HolderOfScript(dictionary))
                for value in dict(dictionary.items()).values():
                    self._visit(value, _DEPTH)
            for child in module.children():
                self._visit(child, _DEPTH)

    def _visit_container(self, value: Any, depth: int, in_object: bool) -> None:
        if isinstance(value, dict):
            if type(value) in (dict, OrderedDict):
                self._dicts.append(value)
            else:
                self.holders.append(Holder(value))
                self._is_comparable = False
            inner: Any = value.values()
        elif isinstance(value, (list, deque)):
            self.holders.append(HolderOfList(value))
            inner = value
        elif isinstance(value, set):
            self._sets.append(value)
            self._is_comparable &= all(type(item) in _ATOMS for item in value)
            inner = value
        elif isinstance(value, tuple):
            if all(type(item) in _ATOMS for item in value):
                return
            inner = value
        elif isinstance(value, np.ndarray):
            self._is_comparable = False  # its numbers are copied by the walk
            if value.flags.writeable and not value.dtype.hasobject:
                self.holders.append(HolderOfArray(value))
            inner = ()
        # Objects in objects lead to what others share: loggers, data sets, a trainer.
        elif not in_object and isinstance(getattr(value, "__dict__", None), dict):
            self._dicts.append(value.__dict__)
            self._objects.append(value)
            self._attributes.append(value.__dict__)
            inner, in_object = value.__dict__.values(), True
        else:
            return
        self._visited_ids.add(id(value))
        for item in tuple(inner):
            if type(item) not in _ATOMS:
                self._visit(item, depth - 1, in_object=in_object)


_ATTRIBUTES_OF = operator.attrgetter("__dict__")

_MOST_WALKS = 8
"""Models whose walks are remembered at once."""

_walks: WeakKeyDictionary[nn.Module, Walk] = WeakKeyDictionary()
"""model -> the walk from it. What can be reached from a model may lead back to it, so that a walk
could keep its model alive: such a circle is broken when Python looks for circles."""


def borrow_walk(model: nn.Module) -> Walk:
    """Return the walk from a model: the one that is remembered, if it would be the same now.

    Nobody else is given it until it is returned, for holders may expect other values meanwhile.
    """
    walk = _walks.pop(model, None)
    if walk is not None:
        walk.give_root(model)
        if walk.holds_still():
            return walk
    return Walk(model)


def return_walk(walk: Walk) -> None:
    """Remember a walk from one model, whose holders are as they were, for the next call."""
    model = walk.modules[0]
    walk.give_root(_NOBODY)
    _walks[model] = walk
    if len(_walks) <= _MOST_WALKS:
        return
    # Other threads, and Python's search for circles, may take walks away meanwhile.
    for reference in _walks.keyrefs()[:-_MOST_WALKS]:
        oldest = reference()
        if oldest is not None:
            _walks.pop(oldest, None)


def give_back(walk: Walk) -> None:
    """Return a walk of which nothing has been made since it was borrowed; not to be used again."""
    if "looks" in walk.notes:  # it was remembered before
        return_walk(walk)


_NOBODY = nn.Module()
"""Stands for the model in a walk that is remembered."""


def _forget_walks(phase: str, info: dict[str, Any]) -> None:
    """Let walks go before Python looks for circles among all objects."""
    if phase == "start" and info["generation"] == 2:
        _walks.clear()


gc.callbacks.append(_forget_walks)
