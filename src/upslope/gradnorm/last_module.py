"""The last module of a network: what `parameters="last"` means.

The order in which modules were registered is not the order in which they run. The last module is
read off the graph of the output of one sample: it owns the parameter that is fewest steps away.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from upslope.errors import GradientNormError
from upslope.gradnorm.core.batch import Batch
from upslope.gradnorm.core.outputs import tensors_in
from upslope.gradnorm.core.restoring import without_traces
from upslope.gradnorm.losses import logits_of


def find_last_module(model: nn.Module, batch: Batch | None) -> str:
    """Return the name of the last module that has parameters and that the output went through.

    batch: some samples. Without them, or where no gradient reaches a parameter, the
    last one in the order of registration.
    """
    owners: list[str] = [n for n, m in model.named_modules() if _own(m)]
    if batch is not None:
        made: dict[Any, nn.Module] = {}
        with (
            without_traces(model),
            torch.inference_mode(False),
            torch.enable_grad(),
            _noting_parametrized(model, made),
        ):
            outputs = batch.rows(slice(0, 1)).call(model) if batch.n else ()
        nearest = _nearest_owner(_logits(outputs), made)
        for name in reversed(owners):
            module = model.get_submodule(name)
            if module is nearest or any(p is nearest for p in _own(module)):
                return name
    return owners[-1] if owners else ""


def owner_of(name: str) -> str:
    """Return the name of the module that a parameter belongs to, be it by a parametrization."""
    owner = name.rpartition(".")[0]
    head, is_parametrized, _ = f".{owner}.".partition(".parametrizations.")
    return head.removeprefix(".") if is_parametrized else owner


def _own(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module itself, and those that its parametrizations keep for it."""
    if isinstance(module, ParametrizationList):
        return []
    own = list(module.parameters(recurse=False))
    kept = module.parametrizations if is_parametrized(module) else None
    return own + (list(kept.parameters()) if isinstance(kept, nn.Module) else [])


def _logits(outputs: object) -> list[Tensor]:
    """The logits, where an output is named so; else the first output."""
    try:
        return [logits_of(outputs)]
    # Models without logits, such as encoders, put out what counts first.
    except GradientNormError:
        return tensors_in(outputs)[:1]


@contextlib.contextmanager
def _noting_parametrized(model: nn.Module, made: dict[Any, nn.Module]) -> Iterator[None]:
    """Note which step of the graph each parametrized module ends with.

    Its parameters are as many steps further away as their parametrization takes.
    """

    def note(module: nn.Module, _: Any, outputs: Any) -> None:
        for tensor in tensors_in(outputs):
            if tensor.grad_fn is not None:
                made.setdefault(tensor.grad_fn, module)

    handles = [m.register_forward_hook(note) for m in model.modules() if is_parametrized(m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nearest_owner(
    outputs: list[Tensor], made: Mapping[Any, nn.Module]
) -> Tensor | nn.Module | None:
    """The parameter, or the parametrized module, that is fewest operators from the outputs."""
    queue = deque(t.grad_fn for t in outputs if t.grad_fn is not None)
    seen = set(queue)
    while queue:
        node = queue.popleft()
        if node in made:
            return made[node]
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            return variable
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return None
