"""Models are left as they were, and random numbers as one forward pass would leave them.

The engine runs a model more often than its caller does: to learn, to prove, sample by sample. Each
of these passes starts from the state and the random numbers that the caller's model had.
"""

from __future__ import annotations

import _random
import contextlib
import ctypes
import operator
import random
import sys
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from upslope.errors import GradientNormError
from upslope.gradnorm.core.containers import Walk, borrow_walk
from upslope.gradnorm.core.inventory import Inventory
from upslope.gradnorm.core.model_state import ModelState


class RandomState:
    """The state of the generators of torch (on the CPU and a model's GPUs), NumPy and Python.

    inventory: of the model.
    """

    def __init__(self, inventory: Inventory):
        self._devices: list[int] = []
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # else no tensor is there
            self._devices = inventory.cuda_devices
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(device) for device in self._devices]
        self._memory, self._numpy, self._python = _states_of_numpy_and_python()

    def has_moved(self) -> bool:
        """Whether numbers were drawn since."""
        return (
            not torch.equal(self._cpu, torch.get_rng_state())
            or self._memory != _memory_of_generators()
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


def _states_of_numpy_and_python() -> tuple[Hashable, Any, Any]:
    """Return the memory of both generators, and their states, as they are set again.

    To ask for the states takes as long as a small layer, three times per batch. So those of the
    last time are kept, and hold as long as the memory is the same.
    """
    global _last_states
    memory, states = _memory_of_generators(), _last_states
    if states is None or states[0] != memory:
        states = _last_states = memory, np.random.get_state(legacy=False), random.getstate()
    return states


_last_states: tuple[Hashable, Any, Any] | None = None


def _memory_of_generators() -> Hashable:
    """Return all that the generators of NumPy and Python draw their numbers from, as it lies there.

    Also the normal number that each keeps for the next call: a draw of it moves nothing else.
    """
    generator = np.random.mtrand.get_bit_generator()
    if type(generator) is np.random.MT19937:
        words: Hashable = ctypes.string_at(generator.ctypes.state_address, _BYTES_OF_MT19937)
    else:
        words = repr(np.random.get_state(legacy=False))
    return words, _fields_of(np.random.mtrand._rand), _fields_of(_PYTHON), _PYTHON.gauss_next


_PYTHON: Any = random._inst

_BYTES_OF_MT19937 = 4 * (624 + 1)
"""Those of `mt19937_state` in NumPy's C code: 624 words, and a place among them."""


def _fields_of(generator: np.random.RandomState | random.Random) -> bytes:
    """Return the fields that an object of the C code has behind the header of every object."""
    kind = np.random.RandomState if generator is not _PYTHON else _random.Random
    header: int = object.__basicsize__
    return ctypes.string_at(id(generator) + header, kind.__basicsize__ - header)


@contextlib.contextmanager
def restoring_state(model: nn.Module, walk: Walk | None = None) -> Iterator[ModelState]:
    """Record with autograd on; leave the model and its gradients as they were, whatever happens.

    Yields the state, to be renewed before each pass that counts. What was compiled runs as it was
    written: compiled backward passes free what several passes over one graph need.

    model: the network. walk: as of `ModelState`.
    """
    walk = borrow_walk(model) if walk is None else walk
    parameters = walk.inventory.parameters
    gradients = list(map(_GRADIENT, parameters))
    for p, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            p.grad = None  # a reentrant checkpoint adds to it
    try:
        # The caller scores without gradients, as a rule; here they are what is asked for.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _without_compiling(),
            restoring(ModelState(model, walk=walk)) as state,
        ):
            yield state
    finally:
        if not all(map(operator.is_, map(_GRADIENT, parameters), gradients)):
            for p, gradient in zip(parameters, gradients, strict=True):
                if p.grad is not gradient:
                    p.grad = gradient


_GRADIENT = operator.attrgetter("grad")


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
    with restoring(ModelState(model)) as state:
        numbers = RandomState(state.inventory)
        with numbers.replaying(), _without_compiling():
            yield
