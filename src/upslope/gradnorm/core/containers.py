"""The containers of a module: dicts, lists and sets of what it keeps between two passes.

A pass may write a buffer, set an attribute, append to a list or fill a cache. All of these are
containers that can be reached from a module: its own attributes, its buffers, its parameters, and
what lies in them. `Walk` lists them once; a `Holder` is one of them, with what it held.
"""

from __future__ import annotations

import operator
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ATOMS = frozenset(
    {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
)
_HAS_NO_PARTS = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, partial)
"""Values that are no containers, whatever attributes they have."""

_MODULE_FIELDS = frozenset(vars(nn.Module())) - {"_buffers", "_parameters", "_modules"}
"""Attributes in which PyTorch keeps the hooks of a module."""

_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_pre_hooks",
    "_backward_hooks",
)  # fmt: skip
"""Those among them that a pass runs, or may install."""

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
        self.holders.append(_Dicts(self._dicts))
        self.holders.append(_Hooks(self.modules))
        self.holders.append(_TensorHooks(self.tensors.values()))

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
                self.holders.append(_Script(dictionary))
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
            self.holders.append(_List(value))
            inner = value
        elif isinstance(value, set):
            self.holders.append(_Set(value))
            inner = value
        elif isinstance(value, tuple):
            if all(type(item) in _ATOMS for item in value):
                return
            inner = value
        elif isinstance(value, np.ndarray):
            if value.flags.writeable and not value.dtype.hasobject:
                self.holders.append(_Array(value))
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


class Holder:
    """A dict, and the entries that it held."""

    def __init__(self, tensors: Any):
        self.held = tensors
        self._keys, self._values = self._entries()
        self._values_to_be = self._values

    def expect(self, instead: Callable[[Any], Any]) -> None:
        """Expect other values from now on. instead: what stands for each that it held."""
        self._values_to_be = [instead(value) for value in self._values]

    def put_back(self) -> None:
        """Let it hold what is expected, if a pass has changed it."""
        keys, values = self._entries()
        if not (_are(values, self._values_to_be) and _are(keys, self._keys)):
            self._write(keys)

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return list(self.held), list(self.held.values())

    def _write(self, keys: Sequence[Any]) -> None:
        if not _are(keys, self._keys):
            self.held.clear()
        for key, value in zip(self._keys, self._values_to_be, strict=True):
            self.held[key] = value


class _Dicts(Holder):
    """Many dicts, and the entries that they held.

    A module has four of its own, and no pass changes nearly all of them: one question for all.
    """

    def __init__(self, dicts: list[dict[Any, Any]]):
        self._sizes = list(map(len, dicts))
        super().__init__(dicts)

    def put_back(self) -> None:
        """Let each dict hold what is expected, if a pass has changed it."""
        if self._sizes == list(map(len, self.held)):
            keys, values = chain.from_iterable(self.held), self._values_of(self.held)
            if all(map(operator.is_, values, self._values_to_be)) and all(
                map(operator.is_, keys, self._keys)
            ):
                return
        start = 0
        for dictionary, size in zip(self.held, self._sizes, strict=True):
            part = slice(start, start + size)
            keys_to_be, values_to_be = self._keys[part], self._values_to_be[part]
            same = _are(list(dictionary), keys_to_be)
            if not (same and _are(list(dictionary.values()), values_to_be)):
                if not same:
                    dictionary.clear()
                dictionary.update(zip(keys_to_be, values_to_be, strict=True))
            start += size

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return list(chain.from_iterable(self.held)), list(self._values_of(self.held))

    @staticmethod
    def _values_of(dicts: list[dict[Any, Any]]) -> Iterator[Any]:
        return chain.from_iterable(dictionary.values() for dictionary in dicts)


def _are(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether two sequences are of the same objects: tensors have no other equality."""
    return len(first) == len(second) and all(map(operator.is_, first, second))


class _Script(Holder):
    """The buffers or parameters of a compiled script."""

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        pairs = list(self.held.items())
        return [key for key, _ in pairs], [value for _, value in pairs]

    def _write(self, keys: Sequence[Any]) -> None:  # noqa: ARG002
        for key, value in zip(self._keys, self._values_to_be, strict=True):
            self.held[key] = value


class _List(Holder):
    """A list or a deque, and what it held."""

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), list(self.held)

    def _write(self, keys: Sequence[Any]) -> None:  # noqa: ARG002
        self.held.clear()
        self.held.extend(self._values_to_be)


class _Set(Holder):
    """A set, and the entries that it held."""

    def __init__(self, tensors: set[Any]):
        super().__init__(tensors)
        self._copy = set(tensors)

    def put_back(self) -> None:
        """Let it hold what is expected, if a pass has changed it."""
        if self.held != self._copy:
            self.held.clear()
            self.held.update(self._copy)

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), []


class _Array(Holder):
    """An array of NumPy, and the numbers that it held."""

    def __init__(self, tensors: Any):
        super().__init__(tensors)
        self._copy = tensors.copy()

    def put_back(self) -> None:
        """Let it hold what is expected, if a pass has changed it."""
        if self.held.tobytes() != self._copy.tobytes():
            self.held[...] = self._copy

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), []


class _Hooks(Holder):
    """The hooks and the classes of modules.

    A pass may install hooks, and remember by an attribute that it has: where that is put back, they
    must go as well, or the next pass installs them twice. A parametrization changes the class.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        everything = (vars(module).get(name) for module in modules for name in _HOOKS)
        super().__init__([hooks for hooks in everything if hooks is not None])
        # Nearly all are empty, and this runs before each pass: sizes are compared at first.
        self._sizes = list(map(len, self.held))
        self._copies = {i: dict(self.held[i]) for i, size in enumerate(self._sizes) if size}
        self._modules, self._classes = modules, list(map(type, modules))

    def put_back(self) -> None:
        """Let modules have the hooks and the classes that they had."""
        now = list(map(len, self.held))
        places = set(self._copies)
        if now != self._sizes:
            places.update(i for i, size in enumerate(now) if size != self._sizes[i])
        for i in places:
            _fill(self.held[i], self._copies.get(i, {}))
        if list(map(type, self._modules)) != self._classes:
            for module, own_fields in zip(self._modules, self._classes, strict=True):
                module.__class__ = own_fields

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), []


class _TensorHooks(Holder):
    """The hooks on the gradients of tensors. A pass that registers one, and remembers that it has,
    would change the gradient once more in each of ours."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__(list(tensors))
        self._copies = {
            id(tensor): [dict(hooks or {}) for hooks in _hooks_of(tensor)]
            for tensor in self.held
            if any(_hooks_of(tensor))
        }

    def put_back(self) -> None:
        """Let tensors have the hooks that they had."""
        for tensor in self.held:
            hooks = _hooks_of(tensor)
            if hooks[0] or hooks[1] or id(tensor) in self._copies:
                for hook_dict, before in zip(
                    hooks, self._copies.get(id(tensor), ({}, {})), strict=True
                ):
                    if hook_dict is not None:
                        _fill(hook_dict, before)

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), []


def _hooks_of(tensor: Tensor) -> tuple[dict[int, Any] | None, dict[int, Any] | None]:
    """The hooks on a gradient, and those that run once it is accumulated."""
    return tensor._backward_hooks, tensor._post_accumulate_grad_hooks


def _fill(dictionary: dict[Any, Any], before: Mapping[Any, Any]) -> None:
    """Let a dict hold what it held before, in that order."""
    if list(dictionary.items()) != list(before.items()):
        dictionary.clear()
        dictionary.update(before)
