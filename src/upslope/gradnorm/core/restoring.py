"""Models are left as they were, and random numbers as one forward pass would leave them.

The engine runs a model more often than its caller does: to learn, to prove, sample by sample. Each
of these passes starts from the state and the random numbers that the caller's model had.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import modules_of
from upslope.gradnorm.core.model_state import ModelState


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
    def replaying(self) -> Iterator[None]:
        """Draw the same random numbers again, and leave the generators as they were."""
        # Models draw from NumPy and Python as well: augmentation in `forward`, say.
        outer_state = np.random.get_state(legacy=False), random.getstate()
        with torch.random.fork_rng(devices=self._devices):
            self.rewind()
            try:
                yield
            finally:
                np.random.set_state(outer_state[0])
                random.setstate(outer_state[1])


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two states of NumPy's generator are the same."""
    a, b = first["state"], second["state"]
    return bool(a["pos"] == b["pos"] and np.array_equal(a["key"], b["key"]))


@contextlib.contextmanager
def restoring_state(model: nn.Module) -> Iterator[ModelState]:
    """Record with autograd on; leave the model and its gradients as they were, whatever happens.

    Yields the state, to be renewed before each pass that counts. What was compiled runs as it was
    written: compiled backward passes free what several passes over one graph need.
    """
    tensors = (p for module in modules_of(model) for p in module._parameters.values())
    parameters = {id(p): p for p in tensors if p is not None}
    gradients = [(p, p.grad) for p in parameters.values()]
    for p, gradient in gradients:
        if gradient is not None:
            p.grad = None  # a reentrant checkpoint adds to it
    try:
        # The caller scores without gradients, as a rule; here they are what is asked for.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _without_compiling(),
            restoring(ModelState(model)) as state,
        ):
            yield state
    finally:
        for p, gradient in gradients:
            if p.grad is not gradient:
                p.grad = gradient


@contextlib.contextmanager
def restoring(state: ModelState) -> Iterator[ModelState]:
    """Put the state back in the end; what the model itself raises comes before our refusals."""
    try:
        yield state
    except GradientNormError as error:
        # What is wrong with the state may be what made the numbers of passes differ.
        try:
            state.restore()
        except GradientNormError as cause:  # told first: the other may follow from it
            raise cause from error
        raise
    except BaseException:
        with contextlib.suppress(GradientNormError):
            state.restore()
        raise
    state.restore()


def _without_compiling() -> contextlib.AbstractContextManager[Any]:
    """Let `torch.compile`d modules and functions run without their compiled form."""
    # To import the compiler takes seconds; without it nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """Run the model for the engine's own purposes: state and random numbers stay as they are."""
    with restoring(ModelState(model)), RandomState(model).replaying(), _without_compiling():
        yield
