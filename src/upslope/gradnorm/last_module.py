"""The last module of a network: what `parameters="last"` means.

The order in which modules were registered is not the order in which they run. The last module is
read off the graph of the output of one sample: it owns the parameter that is fewest steps away.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from upslope.errors import GradientNormError
from upslope.gradnorm.batch import Batch, Inputs
from upslope.gradnorm.losses import logits_of
from upslope.gradnorm.outputs import tensors_in
from upslope.gradnorm.restoring import without_traces


def find_last_module(model: nn.Module, inputs: Inputs | None) -> str:
    """Return the name of the last module that has parameters and that the output went through.

    inputs: as for `gradient_norms`. Without them, or where no gradient reaches a parameter, the
    last one in the order of registration.
    """
    owners: list[str] = [n for n, m in model.named_modules() if _own(m)]
    if inputs is not None:
        batch = Batch.of(inputs)
        with without_traces(model), torch.inference_mode(False), torch.enable_grad():
            outputs = batch.rows(slice(0, 1)).call(model) if batch.n else ()
        nearest = _nearest_leaf(_logits(outputs))
        for name in reversed(owners):
            if any(p is nearest for p in _own(model.get_submodule(name))):
                return name
    return owners[-1] if owners else ""


def owner_of(name: str) -> str:
    """Return the name of the module that a parameter belongs to, be it by a parametrization."""
    owner = name.rpartition(".")[0]
    head, found, _ = f".{owner}.".partition(".parametrizations.")
    return head.removeprefix(".") if found else owner


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
    except GradientNormError:
        return tensors_in(outputs)[:1]


def _nearest_leaf(outputs: list[Tensor]) -> Tensor | None:
    """The parameter that is fewest operators away from the outputs."""
    queue = deque(t.grad_fn for t in outputs if t.grad_fn is not None)
    seen = set(queue)
    while queue:
        node = queue.popleft()
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            return variable
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return None
