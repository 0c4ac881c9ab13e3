"""Which parameters are asked for, and what `parameters="last"` means: the last module of a network.

The order in which modules were registered is not the order in which they run. The last module is
read off the graph of the output of one sample: it owns the parameter that is fewest steps away.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import Batch, Inputs, in_words, require_module, tensors_in
from upslope.gradnorm.core.state.containers import Walk, borrow_walk, give_back
from upslope.gradnorm.core.state.restoring import in_turn, without_traces
from upslope.gradnorm.losses import logits_of
from upslope.gradnorm.trace.refusals import (
    refuse_inference_parameters,
    refuse_parameter_hooks,
    refuse_unready_modules,
)
from upslope.gradnorm.trace.sharing import open_batch

Parameters = str | Iterable[str] | Callable[[str, nn.Parameter], bool] | None
"""Which parameters: None or "all", "last" (the last module with any that the output went through),
names or prefixes of names, or a predicate of name and parameter."""


@in_turn
def select(
    model: nn.Module, parameters: Parameters = None, inputs: Inputs | None = None
) -> dict[str, nn.Parameter]:
    """Return name -> parameter, for those that are asked for and require a gradient.

    model: the network. parameters: which ones. inputs: as for `gradient_norms`, from which "last"
    reads which module the output went through last.

    Raises:
        GradientNormError: none does, a name is not in the model, or one has a gradient hook or was
            made in `torch.inference_mode`.
    """
    require_module(model)
    batch = None if inputs is None else open_batch(model, inputs)
    parameters_chosen, walk = select_of_walk(borrow_walk(model), parameters, batch)
    give_back(walk)
    return parameters_chosen


def select_of_walk(
    walk: Walk, parameters: Parameters, batch: Batch | None
) -> tuple[dict[str, nn.Parameter], Walk]:
    """Return what `select` does, and a walk through the model as it is then.

    walk: borrowed from the model; it is returned itself where nothing of the caller's has run.
    batch: some samples, or None, as of `find_last_module`.

    Raises:
        GradientNormError: as of `select`; or a module is not ready to run (`refusals`).
    """
    model, inventory = walk.modules[0], walk.inventory
    # Before anything runs: such a module writes to its weight in every forward pass.
    refuse_unready_modules(inventory)
    trainable = {name: p for name, p in inventory.named_parameters() if p.requires_grad}
    if parameters is None or parameters == "all":
        parameters_chosen = trainable
    elif callable(parameters):
        parameters_chosen = {name: p for name, p in trainable.items() if parameters(name, p)}
        give_back(walk)  # for code of the caller's has run
        walk = borrow_walk(model)
    elif parameters == "last":
        give_back(walk)  # for the model runs
        parameters_chosen = _select_last(model, trainable, batch)
        walk = borrow_walk(model)
    else:
        parameters_chosen = _select_by_names(model, trainable, parameters)
    if not parameters_chosen:
        raise GradientNormError(
            f"Expected at least one parameter that requires a gradient but `parameters="
            f"{parameters!r}` chooses none of {len(trainable)} trainable ones. Unfreeze some with "
            "`requires_grad_(True)`, or choose others."
        )
    refuse_inference_parameters(parameters_chosen)
    refuse_parameter_hooks(parameters_chosen)
    return parameters_chosen, walk


def _select_last(
    model: nn.Module, trainable: Mapping[str, nn.Parameter], batch: Batch | None
) -> dict[str, nn.Parameter]:
    last, names = find_last_module(model, batch), _names_by_id(model)
    return {
        name: p
        for name, p in trainable.items()
        if any(owner_of(n) == last for n in names.get(id(p), [name]))
    }


def _select_by_names(
    model: nn.Module, trainable: Mapping[str, nn.Parameter], parameters: str | Iterable[str]
) -> dict[str, nn.Parameter]:
    names = _names_by_id(model)
    names_wanted = _names_in(parameters)
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    missing = [w for w in names_wanted if not any(_under(name, w) for name in every)]
    if missing:
        raise GradientNormError(
            f"Expected `parameters` to name parameters or modules of the model but {missing} "
            f"are none. It has {every[:3]} ... {every[-2:]}."
        )
    return {
        name: p
        for name, p in trainable.items()
        if any(_under(n, w) for n in names.get(id(p), [name]) for w in names_wanted)
    }


def _names_in(parameters: str | Iterable[str]) -> list[str]:
    if isinstance(parameters, str):
        return [parameters]
    is_list = isinstance(parameters, Iterable) and not isinstance(parameters, Tensor)
    names: list[Any] = list(parameters) if is_list else [parameters]
    if not all(isinstance(name, str) for name in names):
        raise GradientNormError(
            'Expected `parameters` to be None, "all", "last", names, or a function of name and '
            f"parameter but got {in_words(parameters)}. Names are text, as `model."
            "named_parameters()` gives them."
        )
    return names


def _names_by_id(model: nn.Module) -> dict[int, list[str]]:
    """Return the `id` of each parameter -> its names, of which a tied parameter has several."""
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return names


def _under(name: str, names: str) -> bool:
    return name == names or name.startswith(names + ".")


def find_last_module(model: nn.Module, batch: Batch | None) -> str:
    """Return the name of the last module that has parameters and that the output went through.

    batch: some samples. Without them, or where no gradient reaches a parameter, the
    last one in the order of registration.
    """
    owners: list[str] = [n for n, m in model.named_modules() if _parameters_of(m)]
    if batch is not None:
        module_of_output: dict[Any, nn.Module] = {}
        with (
            without_traces(model),
            torch.inference_mode(False),
            torch.enable_grad(),
            _note_parametrizations(model, module_of_output),
        ):
            outputs = batch.rows(slice(0, 1)).call(model) if batch.n else ()
        nearest = _nearest_owner(_logits(outputs), module_of_output)
        for name in reversed(owners):
            module = model.get_submodule(name)
            if module is nearest or any(p is nearest for p in _parameters_of(module)):
                return name
    return owners[-1] if owners else ""


def owner_of(name: str) -> str:
    """Return the name of the module that a parameter belongs to, be it by a parametrization."""
    owner = name.rpartition(".")[0]
    head, is_parametrized, _ = f".{owner}.".partition(".parametrizations.")
    return head.removeprefix(".") if is_parametrized else owner


def _parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module itself, and those that its parametrizations keep for it."""
    if isinstance(module, ParametrizationList):
        return []
    own_parameters = list(module.parameters(recurse=False))
    parametrization_modules = module.parametrizations if is_parametrized(module) else None
    return own_parameters + (
        list(parametrization_modules.parameters())
        if isinstance(parametrization_modules, nn.Module)
        else []
    )


def _logits(outputs: object) -> list[Tensor]:
    """The logits, where an output is named so; else the first output."""
    try:
        return [logits_of(outputs)]
    # Models without logits, such as encoders, put out what counts first.
    except GradientNormError:
        return tensors_in(outputs)[:1]


@contextlib.contextmanager
def _note_parametrizations(
    model: nn.Module, module_of_output: dict[Any, nn.Module]
) -> Iterator[None]:
    """Note which step of the graph each parametrized module ends with.

    Its parameters are as many steps further away as their parametrization takes.
    """

    def note(module: nn.Module, _: Any, outputs: Any) -> None:
        for tensor in tensors_in(outputs):
            if tensor.grad_fn is not None:
                module_of_output.setdefault(tensor.grad_fn, module)

    handles = [m.register_forward_hook(note) for m in model.modules() if is_parametrized(m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nearest_owner(
    outputs: list[Tensor], module_of_output: Mapping[Any, nn.Module]
) -> Tensor | nn.Module | None:
    """The parameter, or the parametrized module, that is fewest operators from the outputs."""
    queue = deque(t.grad_fn for t in outputs if t.grad_fn is not None)
    visited_nodes = set(queue)
    while queue:
        node = queue.popleft()
        if node in module_of_output:
            return module_of_output[node]
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            return variable
        for parent, _ in node.next_functions:
            if parent is not None and parent not in visited_nodes:
                visited_nodes.add(parent)
                queue.append(parent)
    return None
