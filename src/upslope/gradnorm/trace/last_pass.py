"""The last pass of a call: hooks see the whole batch in the end, as by one pass of the model.

Hooks keep what they see where the engine cannot put it back: in a closure, a list, a file. The
engine's passes of half of a batch, and of NaN, must not be what they saw last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules import module as hooks

from upslope.gradnorm.core.model_io import Batch, modules_of
from upslope.gradnorm.core.model_state import ModelState
from upslope.gradnorm.core.restoring import RandomState


@contextlib.contextmanager
def showing_batch_last(model: nn.Module, batch: Batch, state: ModelState) -> Iterator[None]:
    """Run the model on the whole batch at the end of a call, if forward hooks have seen another.

    model, batch: of the call. state: what each pass starts from, and how many there were.
    """
    if not _has_hooks(model):
        yield
        return
    numbers = RandomState(model)
    yield
    # A program that is known takes one pass, which is the one that the caller asked for.
    if batch.n == 0 or (state.passes == 1 and state.last_size == batch.n):
        return
    with state.one_pass(batch.n), numbers.replaying(), torch.no_grad():
        batch.call(model)


def _has_hooks(model: nn.Module) -> bool:
    """Whether somebody else sees what modules are given or put out."""
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        return True
    hooks_of_node = (
        hook
        for module in modules_of(model)
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    # PyTorch's own normalise weights or prune, and keep nothing.
    return any(
        not (getattr(hook, "__module__", None) or "").startswith("torch.") for hook in hooks_of_node
    )
