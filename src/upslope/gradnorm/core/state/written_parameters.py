"""Which parameters the passes of a model write: remembered from call to call, and refused.

A pass may renormalise an embedding, or keep a running statistic in a parameter. Which parameters
it writes depends on the way that it goes, and so on modes and other flags of the modules.
`model_state` learns them in the first pass of a model, and asks here in every call.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn

from upslope.errors import GradientNormError
from upslope.gradnorm.core.state.containers import Walk

_ids_of_writes_by_model: WeakKeyDictionary[nn.Module, dict[Hashable, set[int]]] = (
    WeakKeyDictionary()
)
"""model -> mode and flags -> the parameters (by `id`) that a pass writes."""


def recall_writes(model: nn.Module, walk: Walk) -> tuple[set[int], bool]:
    """Return the parameters that a pass writes, by `id`, and whether a pass is to show them first.

    The set is the one that is remembered: what is added to it is known in later calls.

    model: the network, in the mode and with the flags that it has now. walk: through it.
    """
    note = f"writes, {torch.is_grad_enabled()}"
    written_ids: set[int] | None = walk.notes.get(note)
    is_new = False
    if written_ids is None:
        key = torch.is_grad_enabled(), _flags(walk.modules)
        learnt_ids = _ids_of_writes_by_model.setdefault(model, {})
        is_new = key not in learnt_ids
        walk.notes[note] = written_ids = learnt_ids.setdefault(key, set())
    return written_ids, is_new


def _flags(modules: Iterable[nn.Module]) -> Hashable:
    """What decides on the way that a model goes: modes, and other attributes that are flags."""
    return tuple(
        value
        for module in modules
        for value in vars(module).values()
        if value is None or isinstance(value, (bool, str))
    )


def hidden_refusal(ids: Iterable[int], modules: Sequence[nn.Module]) -> GradientNormError:
    """Return the error for tensors that are written, and read from where no module holds them.

    ids: the `id` of each. modules: those of the model, by which the tensors are named.
    """
    return GradientNormError(
        f"Expected tensors that a forward pass writes to be held by modules alone but "
        f"{_names_of(ids, modules)[:3]} are read from elsewhere as well: a closure, a global name, "
        "an object with slots. There they cannot be put back before every pass. Read them from the "
        "module (`self.name`)."
    )


def written_refusal(ids: Iterable[int], modules: Sequence[nn.Module]) -> GradientNormError:
    """Return the error for parameters whose values are gone, or that samples decide on.

    ids, modules: as of `hidden_refusal`.
    """
    return GradientNormError(
        f"Expected a forward pass that leaves the parameters as they are, or writes the same "
        f"to them for every batch, but {_names_of(ids, modules)[:3]} hold other numbers after one "
        "pass than after another, or were written to for the first time. Freeze what is a running "
        "statistic (`requires_grad_(False)`) or keep it in a buffer: both are put back before "
        "every pass. Where it was written for the first time, the next call will put it back."
    )


def _names_of(ids: Iterable[int], modules: Sequence[nn.Module]) -> list[str]:
    # The whole network comes last: of several names of a tensor, its own counts.
    pairs = ((*m.named_parameters(), *m.named_buffers()) for m in modules[::-1])
    name_of = {id(tensor): name for name_pairs in pairs for name, tensor in name_pairs}
    return sorted(name_of.get(i, "a tensor in an attribute") for i in ids)
