"""Buffers and random numbers are left as one forward pass would leave them, or as they were.

The engine runs a model more often than its caller does: to learn, to prove, sample by sample. Each
of these passes starts from the buffers and the random numbers that the caller's model had.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a network, each once, as `model.modules()` does.

    The engine walks through them a dozen times per batch. PyTorch's own walk makes the name of each
    module on its way, which is ten times as slow: a hundredth of the time of a small batch.
    """
    modules: list[nn.Module] = []
    seen: set[int] = set()

    def walk(module: nn.Module) -> None:
        if id(module) not in seen:
            seen.add(id(module))
            modules.append(module)
            for child in module._modules.values():
                if child is not None:
                    walk(child)

    walk(model)
    return modules


class Buffers:
    """The buffers of a model, as they are now."""

    def __init__(self, model: nn.Module):
        self._own = [
            _Buffer(module, name, buffer, buffer.detach().clone())
            for module in modules_of(model)
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def renew(self) -> None:
        """Before another pass: whatever a pass has changed gets a copy of what it was.

        Not the tensor itself, which the graph of an earlier pass may hold.
        """
        for buffer in self._own:
            if buffer.has_changed():
                buffer.put(buffer.before.clone())

    @torch.no_grad()
    def restore(self) -> None:
        """At the end: the caller's own tensors are back, and hold what they held."""
        for buffer in self._own:
            if buffer.original._version != buffer.first_version or buffer.has_changed():
                buffer.original.copy_(buffer.before)
            buffer.put(buffer.original)


class _Buffer:
    """One buffer of one module: the tensor, and a copy of its values."""

    def __init__(self, module: nn.Module, name: str, original: Tensor, before: Tensor):
        self.module, self.name, self.original, self.before = module, name, original, before
        self.first_version = original._version
        self.put(original)

    def put(self, tensor: Tensor) -> None:
        """Make this the module's buffer."""
        self.module._buffers[self.name] = self.now = tensor
        self.version = tensor._version

    def has_changed(self) -> bool:
        """Whether the last pass wrote to the buffer, or put another in its place."""
        there = self.module._buffers.get(self.name)
        if there is not self.now or self.now._version != self.version:
            return True
        # Normalisation in training mode writes past the counter of versions.
        return self.module.training and not torch.equal(self.now, self.before)


class RandomState:
    """The state of the generators of torch (on the CPU and a model's GPUs), NumPy and Python."""

    def __init__(self, model: nn.Module):
        self._devices: list[int] = []
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # else no tensor is there
            tensors = (*model.parameters(), *model.buffers())
            self._devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(device) for device in self._devices]
        self._numpy, self._python = np.random.get_state(legacy=False), random.getstate()

    def has_moved(self) -> bool:
        """Whether numbers were drawn since."""
        return (
            not torch.equal(self._cpu, torch.get_rng_state())
            or self._python != random.getstate()
            or not _equal(self._numpy, np.random.get_state(legacy=False))
            or any(
                not torch.equal(state, torch.cuda.get_rng_state(device))
                for device, state in zip(self._devices, self._cuda, strict=True)
            )
        )

    def rewind(self) -> None:
        """Put the generators back to where they were."""
        torch.set_rng_state(self._cpu)
        for device, state in zip(self._devices, self._cuda, strict=True):
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(self._numpy)
        random.setstate(self._python)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw the same random numbers again, and leave the generators as they were."""
        # Models draw from NumPy and Python as well: augmentation in `forward`, say.
        own = np.random.get_state(legacy=False), random.getstate()
        with torch.random.fork_rng(devices=self._devices):
            self.rewind()
            try:
                yield
            finally:
                np.random.set_state(own[0])
                random.setstate(own[1])


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two states of NumPy's generator are the same."""
    a, b = first["state"], second["state"]
    return bool(a["pos"] == b["pos"] and np.array_equal(a["key"], b["key"]))


@contextlib.contextmanager
def restoring_state(model: nn.Module) -> Iterator[Buffers]:
    """Record with autograd on; leave buffers and gradients as they were, whatever happens.

    Yields the buffers, to be renewed before each pass that counts. What was compiled runs as it was
    written: compiled backward passes free what several passes over one graph need.
    """
    buffers = Buffers(model)
    held = (p for module in modules_of(model) for p in module._parameters.values())
    parameters = {id(p): p for p in held if p is not None}
    gradients = [(p, p.grad) for p in parameters.values()]
    for p, _ in gradients:
        p.grad = None  # a reentrant checkpoint adds to it
    try:
        # The caller scores without gradients, as a rule; here they are what is asked for.
        with torch.inference_mode(False), torch.enable_grad(), _uncompiled():
            yield buffers
    finally:
        buffers.restore()
        for p, own in gradients:
            p.grad = own


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Let `torch.compile`d modules and functions run without their compiled form."""
    # To import the compiler takes seconds; without it nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """Run the model for the engine's own purposes: buffers and random numbers stay as they are."""
    buffers, numbers = Buffers(model), RandomState(model)
    try:
        with numbers.replayed(), _uncompiled():
            yield
    finally:
        buffers.restore()
