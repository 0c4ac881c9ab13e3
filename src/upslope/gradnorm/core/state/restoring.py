"""Models are left as they were, and random numbers as one forward pass would leave them.

The engine runs a model more often than its caller does: to learn, to prove, sample by sample. Each
of these passes starts from the state and the random numbers that the caller's model had.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import operator
import random
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from upslope.errors import GradientNormError
from upslope.gradnorm.core.state.containers import Walk, borrow_walk
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.state.model_state import ModelState

P = ParamSpec("P")
R = TypeVar("R")

_turns = threading.RLock()
"""Held by the call that is under way. Reentrant: a loss or a model may ask for norms itself."""


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Let calls from several threads wait for each other; for the public functions.

    A call puts buffers, flags, `.grad` and random numbers of the whole process into another state
    for a while. Calls of one model at once would find that state, and take it for the model's.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _turns:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                _refuse_functions_compiled(error)
                raise

    return call


def _refuse_functions_compiled(error: Exception) -> None:
    """Refuse a model in which an operator compiles the functions that it is given.

    The compiler fails in many ways at tensors that the engine follows, and at weights of which it
    has not been told.

    error: what the model has raised.

    Raises:
        GradientNormError: such an operator was at work.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("torch._higher_order_ops."):
            raise GradientNormError(
                "Expected a model whose operators can be followed but "
                f"`{trace.tb_frame.f_code.co_name}` compiles the functions that it is given. Write "
                "the branch or the loop in Python, `if` or `for`."
            ) from error
        trace = trace.tb_next


class RandomState:
    """The state of the generators of torch (on the CPU and a model's GPUs), NumPy and Python.

    inventory: of the model.
    """

    def __init__(self, inventory: Inventory):
        self._devices: list[int] = []
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # else no tensor is there
            self._devices = inventory.cuda_devices
        self._cpu = torch.get_rng_state()
        self._bytes_of_cpu = _bytes_of(self._cpu)
        self._cuda = [torch.cuda.get_rng_state(device) for device in self._devices]
        self._places, self._numpy, self._python = _states_of_numpy_and_python()

    def has_moved(self) -> bool:
        """Whether numbers were drawn since."""
        return (
            self._bytes_of_cpu != _bytes_of(torch.get_rng_state())
            or self._places != _places_of_generators()
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


def _bytes_of(state: torch.Tensor) -> bytes:
    """Return the state of a generator of torch, (bytes,), to be compared: torch takes 20 us."""
    return ctypes.string_at(state.data_ptr(), len(state))


def _states_of_numpy_and_python() -> tuple[Hashable, Any, Any]:
    """Return where both generators are, and their states, as they are set again.

    To ask for the states takes as long as a small layer. So those of the last time are kept, and
    hold as long as the generators are where they were.
    """
    global _last_states
    places, states = _places_of_generators(), _last_states
    if states is None or states[0] != places:
        states = _last_states = places, np.random.get_state(legacy=False), random.getstate()
    return states


_last_states: tuple[Hashable, Any, Any] | None = None


def _places_of_generators() -> Hashable:
    """Return what is another once NumPy or Python has drawn a number, or was seeded.

    Both generators are Mersenne twisters: a draw moves the place among 624 words, or makes all
    words anew. So the place and a few words tell it, at a tenth of what it takes to read them all.
    Each also keeps a normal number for the next call: a draw of it moves nothing else.
    """
    generator = np.random.mtrand.get_bit_generator()
    if type(generator) is np.random.MT19937:
        words: Hashable = bytes(_view_of_words(generator))
    else:
        words = repr(np.random.get_state(legacy=False))
    return generator, words, bytes(_FIELDS_OF_NUMPY), bytes(_FIELDS_OF_PYTHON), _PYTHON.gauss_next


def _view(address: int, size: int) -> memoryview:
    """Return some bytes of memory, to be read many times: what keeps them must stay alive."""
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


_FEW = 128
"""Bytes that are read of the words of a generator."""

_BYTES_OF_MT19937 = 4 * (624 + 1)
"""Those of `mt19937_state` in NumPy's C code: 624 words, and a place among them."""


@functools.lru_cache(maxsize=1)
def _view_of_words(generator: np.random.MT19937) -> memoryview:
    """Return the last words of a generator of NumPy's, and its place among them."""
    return _view(generator.ctypes.state_address + _BYTES_OF_MT19937 - _FEW, _FEW)


_PYTHON: Any = random._inst
_NUMPY = np.random.mtrand._rand
_HEADER: int = object.__basicsize__
"""Bytes of an object before the fields of the C code; of Python's generator, its place is first."""
_FIELDS_OF_NUMPY = _view(id(_NUMPY) + _HEADER, np.random.RandomState.__basicsize__ - _HEADER)
_FIELDS_OF_PYTHON = _view(id(_PYTHON) + _HEADER, _FEW)


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
            _outside_inference(),
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


def _outside_inference() -> contextlib.AbstractContextManager[Any]:
    """Leave the mode in which nothing is recorded, if the caller is in it."""
    # To enter any mode takes as long as a small layer.
    mode: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else mode


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
