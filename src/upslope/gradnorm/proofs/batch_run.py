"""A model on one batch: ordinary forward passes, each from the same state and random numbers.

Made by `trace/recording` for each microbatch. The proofs run the model through it as PyTorch alone
would, and read from it what the engine knows of the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import Batch, call, clone_rows, tensors_in
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.state.model_state import ModelState
from upslope.gradnorm.core.state.restoring import RandomState
from upslope.gradnorm.core.uses.tape import ComputeOptions
from upslope.gradnorm.core.vmap.vmapped import SeesThroughVmap
from upslope.gradnorm.core.weights.weights import Weights, has_custom_function
from upslope.gradnorm.torch_faults import exact_batch_norm

_KEEP_NOTHING = ("torch.", "transformers.utils.output_capturing")
"""How the modules begin whose hooks keep nothing that a pass does not put out: PyTorch's own, which
normalise weights or prune, and those by which `transformers` adds what layers put out to the
outputs of the model."""


class Watch(Protocol):
    """A `TorchFunctionMode` that knows which tensors a pass of a model begins with."""

    def mark(self, value: Tensor, /) -> Tensor:
        """Return a tensor that has samples, having taken note of it."""
        ...

    def __enter__(self) -> Any:
        """Begin to see every operator of torch that runs."""
        ...

    def __exit__(self, *error: Any) -> Any:
        """Stop seeing the operators of torch."""
        ...


class BatchRun:
    """A model, a batch, and the weights whose gradients are asked for.

    model, batch: the network and its samples. weights: what is differentiated by. options: how the
    kernels compute. state: what every pass starts from.
    """

    outputs: Any
    """What the model put out for the whole batch, with its graph."""

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        weights: Weights,
        options: ComputeOptions,
        state: ModelState,
    ):
        self.model, self.batch, self.weights, self.options = model, batch, weights, options
        self.n = batch.n
        self.types: set[torch.dtype] = set()
        """The types of what depends on the samples, beside those of the weights."""
        self.is_random = False
        """Whether the model draws random numbers that a sample alone would not meet."""
        self.draws_follow_counts = False
        """Whether what it draws for a sample depends on the whole numbers of others: lengths."""
        self.draws_follow_data = False
        """Whether what it draws for a sample depends on numbers of others that are not whole."""
        self.may_mix_samples = False
        """Whether a sample's numbers may depend on others, so that all samples are proven."""
        self.has_hooks = False
        """Whether hooks may change gradients, which must then be those of single samples."""
        self.checks_company = False
        """Whether to hold each sample's gradient alone against that in the batch."""
        self.shared_outputs: set[int] | None = None
        """Outputs that are as long as the batch by chance, once that is known (`mixing`)."""
        self.groups_apart: set[frozenset[int]] = set()
        """Samples that went without the others in a proof of the losses at hand (`own_outputs`)."""
        self._state, self._random = state, RandomState(state.inventory)
        self._has_drawn = False

    @property
    def inventory(self) -> Inventory:
        """What the model is made of."""
        return self._state.inventory

    @property
    def precision(self) -> torch.dtype:
        """The least precise floating type that the model computed in, of those that occur."""
        types = {p.dtype for p in self.weights.parameters.values()} | self.types
        if self.options.dtype is not None:
            return self.options.dtype
        floating = {t.to_real() for t in types if t.is_floating_point or t.is_complex}
        return max(floating, key=lambda t: torch.finfo(t).eps, default=torch.float32)

    @property
    def is_linear(self) -> bool:
        """Whether the backward pass is known to be linear: nothing in it may clip or round."""
        ends = [x for x in tensors_in(self.outputs) if x.requires_grad]
        return not (self.has_hooks or any(map(has_custom_function, ends)))

    def require_linear(self, remedy: str) -> None:
        """Refuse a backward pass that may clip or round gradients. remedy: a sentence.

        Raises:
            GradientNormError: it has a custom function or a hook.
        """
        if not self.is_linear:
            raise GradientNormError(
                "Expected a backward pass in which gradients of classes add up but a custom "
                "`torch.autograd.Function` or a hook is there, which may clip or round them. "
                f"{remedy}"
            )

    @contextlib.contextmanager
    def forward_pass(self, batch: Batch) -> Iterator[None]:
        """Enter a pass: all start from the same state and random numbers; the first draws them.

        Only the first that comes to its end moves the generators of the caller, as one call of the
        model would.

        batch: what the model is run on.
        """
        with self._state.one_pass(batch.n):
            if self._has_drawn:
                with self._random.replaying():
                    yield
                return
            try:
                yield
            except BaseException:  # a checkpoint ends the engine's own pass: the next one draws
                self._random.rewind()
                raise
            self._has_drawn = True
            self.is_random = self._random.has_moved()

    def rewind(self) -> None:
        """Put the generators of random numbers back to where they were before the first pass."""
        self._random.rewind()

    @contextlib.contextmanager
    def other_draws(self) -> Iterator[None]:
        """Enter passes whose random numbers are not those of the batch (`draws`)."""
        self._state.draws_others = True
        try:
            yield
        finally:
            self._state.draws_others = False

    @contextlib.contextmanager
    def loss_pass(self) -> Iterator[None]:
        """Enter a call of the loss, which must draw no random numbers.

        Raises:
            GradientNormError: it has drawn some.
        """
        # A model that draws nothing has left the generators where they were.
        numbers = RandomState(self.inventory) if self.is_random else self._random
        yield
        if numbers.has_moved():
            raise GradientNormError(
                "Expected a loss that gives the same numbers for the same outputs but it draws "
                "random numbers: no second call of it gives the same. Draw them before the call, "
                "and let the loss hold them; a second pass of the model belongs into the model."
            )

    def run_plain(
        self,
        batch: Batch,
        differentiable: Sequence[Tensor] = (),
        change: Callable[[Tensor], Tensor] | None = None,
        watch: Watch | None = None,
    ) -> Any:
        """Return the model's outputs for some of the samples, without interception.

        batch: the samples.
        differentiable: what stands for the floating inputs that have samples, in their order.
        change: what is made of each floating input that has samples. watch: runs with the model,
        and knows the inputs that have samples.
        """
        replacements = iter(differentiable)

        def take(tensor: Tensor, per_sample: bool) -> Tensor:
            if per_sample and tensor.is_floating_point() and differentiable:
                return next(replacements).clone()
            floating = tensor.is_floating_point() or tensor.is_complex()
            if per_sample and floating and change is not None:
                changed_tensor = change(tensor.detach())
            else:
                changed_tensor = clone_rows(tensor)  # for a model may write into what it is given
            return (
                watch.mark(changed_tensor) if watch is not None and per_sample else changed_tensor
            )

        if watch is None:
            with self.forward_pass(batch), exact_batch_norm():
                return call(self.model, batch.map(take))
        with self.forward_pass(batch), exact_batch_norm(), watch, SeesThroughVmap():
            return call(self.model, batch.map(take))


def showing_batch_last(
    model: nn.Module, batch: Batch, state: ModelState
) -> contextlib.AbstractContextManager[None]:
    """Run the model on the whole batch at the end of a call, if forward hooks have seen another.

    Hooks keep what they see where the engine cannot put it back: in a closure, a list, a file. Its
    passes of half of a batch, and of NaN, must not be what they saw last.

    model, batch: of the call. state: what each pass starts from, and how many there were.
    """
    is_seen = _has_hooks(state.inventory)
    return _showing_batch_last(model, batch, state) if is_seen else contextlib.nullcontext()


@contextlib.contextmanager
def _showing_batch_last(model: nn.Module, batch: Batch, state: ModelState) -> Iterator[None]:
    numbers = RandomState(state.inventory)
    yield
    # A program that is known takes one pass, which is the one that the caller asked for.
    if batch.n == 0 or (state.passes == 1 and state.last_size == batch.n):
        return
    with state.one_pass(batch.n), numbers.replaying(), torch.no_grad():
        batch.call(model)


def _has_hooks(inventory: Inventory) -> bool:
    """Whether somebody else sees what modules are given or put out."""
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return True
    return any(
        not (getattr(hook, "__module__", None) or "").startswith(_KEEP_NOTHING)
        for hook in inventory.forward_hooks
    )
