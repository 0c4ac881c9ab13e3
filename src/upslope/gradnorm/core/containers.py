"""The containers of a module: dicts, lists and sets of what it keeps between two passes.

A pass may write a buffer, set an attribute, append to a list or fill a cache. All of these are
containers that can be reached from a module: its own attributes, its buffers, its parameters, and
what lies in them. `Walk` lists them once; a `Holder` is one of them, with what it held (`holders`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upslope.gradnorm.core.holders import (
    Holder,
    HolderOfArray,
    HolderOfDicts,
    HolderOfHooks,
    HolderOfList,
    HolderOfScript,
    HolderOfSet,
    HolderOfTensorHooks,
)

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
        self.tensors: dict[int, Tensor] = {}
        self.modules: list[nn.Module] = []
        self._visited_ids: set[int] = set()
        for module in apart_from:
            self._visited_ids.add(id(module))
            tensors = (*module._parameters.values(), *module._buffers.values())
            self._visited_ids.update(id(tensor) for tensor in tensors if tensor is not None)
        for module in modules:
            self._visit(module, _DEPTH)
        self.holders.append(HolderOfDicts(self._dicts))
        self.holders.append(HolderOfHooks(self.modules))
        self.holders.append(HolderOfTensorHooks(self.tensors.values()))

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
        for name, value in attributes.items():
            if type(value) not in _ATOMS and name not in _MODULE_FIELDS:
                self._visit(value, _DEPTH)
        # The dicts of a compiled script are no dicts of Python, though they look like some.
        if isinstance(module, torch.jit.ScriptModule):
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
            inner: Any = value.values()
        elif isinstance(value, (list, deque)):
            self.holders.append(HolderOfList(value))
            inner = value
        elif isinstance(value, set):
            self.holders.append(HolderOfSet(value))
            inner = value
        elif isinstance(value, tuple):
            if all(type(item) in _ATOMS for item in value):
                return
            inner = value
        elif isinstance(value, np.ndarray):
            if value.flags.writeable and not value.dtype.hasobject:
                self.holders.append(HolderOfArray(value))
            inner = ()
        # Objects in objects lead to what others share: loggers, data sets, a trainer.
        elif not in_object and isinstance(getattr(value, "__dict__", None), dict):
            self._dicts.append(value.__dict__)
            inner, in_object = value.__dict__.values(), True
        else:
            return
        self._visited_ids.add(id(value))
        for item in tuple(inner):
            if type(item) not in _ATOMS:
                self._visit(item, depth - 1, in_object=in_object)
