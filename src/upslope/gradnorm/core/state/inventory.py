"""The parts of a network, read off its modules once and asked for many times per batch.

Everything here follows from the objects that the modules hold, from their hooks and classes, and
from the shapes of their tensors. `containers` keeps it with a walk through the model, and makes it
anew where one of these is another one. Numbers, modes of autograd and flags of tensors are asked
for where they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_LAZY = (UninitializedBuffer, UninitializedParameter)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class Inventory:
    """The modules of a network, and what they own.

    model: the network.
    """

    def __init__(self, model: nn.Module):
        self.modules = modules_of(model)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of all modules, each once."""
        tensors = (p for module in self.modules for p in module._parameters.values())
        return list({id(p): p for p in tensors if p is not None}.values())

    @cached_property
    def buffer_ids(self) -> frozenset[int]:
        """The `id` of each buffer of the modules."""
        return frozenset(id(b) for module in self.modules for b in module._buffers.values())

    @cached_property
    def has_lazy_tensors(self) -> bool:
        """Whether a parameter or buffer has no shape yet. A model that has some is refused."""
        return any(
            isinstance(tensor, _LAZY)
            for module in self.modules
            for tensor in (*module._parameters.values(), *module._buffers.values())
        )

    @cached_property
    def renormalises(self) -> bool:
        """Whether some embedding writes to its weight in each forward pass."""
        return any(
            isinstance(module, _EMBEDDINGS) and module.max_norm is not None
            for module in self.modules
        )

    @cached_property
    def cuda_devices(self) -> list[int]:
        """The GPUs on which there are parameters or buffers."""
        return sorted(
            {
                tensor.device.index
                for module in self.modules
                for tensor in (*module._parameters.values(), *module._buffers.values())
                if tensor is not None and tensor.device.type == "cuda"
            }
        )

    @cached_property
    def training(self) -> tuple[bool, ...]:
        """Whether each module is in training mode."""
        return tuple(module.training for module in self.modules)

    @cached_property
    def places_of_numbers(self) -> list[tuple[str, dict[str, Any]]]:
        """The name of each tensor of a single number, and the dict in which its module keeps it.

        Counters of batches are left out.
        """
        return [
            (name, tensors)
            for module in self.modules
            for tensors in (module._buffers, module._parameters)
            for name, tensor in tensors.items()
            if tensor is not None and tensor.numel() == 1 and name != "num_batches_tracked"
        ]

    @cached_property
    def forward_hooks(self) -> list[Any]:
        """All hooks that see what a module is given, or puts out."""
        return [
            hook
            for module in self.modules
            for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        ]

    @cached_property
    def has_output_hooks(self) -> bool:
        """Whether a hook sees what some module puts out."""
        return any(module._forward_hooks for module in self.modules)

    @cached_property
    def module_with_backward_hook(self) -> str | None:
        """The name of a module whose backward hooks may change gradients; None without one."""
        # A name is made for the one that has some: for all of them it would take too long.
        for module in self.modules:
            if module._backward_hooks or module._backward_pre_hooks:
                names = self.modules[0].named_modules()
                name = next(name for name, other in names if other is module)
                return f"`{name or 'the model'}`"
        return None

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return what `named_parameters()` of the network does."""
        model = self.modules[0]
        kind = type(model)
        own_ways = (kind.named_parameters, kind._named_members, kind.named_modules)
        # A model that says by itself what its parameters are is asked each time.
        if own_ways != _WAYS_OF_PYTORCH:
            return model.named_parameters()
        return self._named_parameters

    @cached_property
    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(_walk_parameters(self.modules[0]))


_WAYS_OF_PYTORCH = (
    nn.Module.named_parameters, nn.Module._named_members, nn.Module.named_modules,
)  # fmt: skip


def _walk_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what `model.named_parameters()` does, without a generator for each level of modules."""
    stack: list[tuple[str, nn.Module]] = [("", model)]
    module_ids, parameter_ids = set[int](), set[int]()
    while stack:
        prefix, module = stack.pop()
        if id(module) in module_ids:
            continue
        module_ids.add(id(module))
        for name, p in module._parameters.items():
            if p is not None and id(p) not in parameter_ids:
                parameter_ids.add(id(p))
                yield prefix + name, p
        children = [(f"{prefix}{n}.", m) for n, m in module._modules.items() if m is not None]
        stack += reversed(children)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a network, each once, as `model.modules()` does.

    model: the network.
    """
    # PyTorch's own walk makes the name of each module on its way, which is ten times as slow.
    modules = {id(model): model}
    _add_modules(model, modules)
    return list(modules.values())


def _add_modules(module: nn.Module, modules: dict[int, nn.Module]) -> None:
    for child in module._modules.values():
        if child is not None and id(child) not in modules:
            modules[id(child)] = child
            if child._modules:
                _add_modules(child, modules)
