"""Refusals of operators that mix samples, of modules that write, and of hooks on gradients.

Under them no sample has a gradient of its own, or the model is not left as it was. `intercept` and
`parameters` call these checks before anything runs, whether or not its parameters are selected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as registry

from upslope.errors import GradientNormError
from upslope.gradnorm.core.layouts.layout import GradientsHooked, SamplesNotSeparable
from upslope.gradnorm.core.state.holders import have_hooks
from upslope.gradnorm.core.state.inventory import Inventory

BATCH_NORMS = frozenset({F.batch_norm, torch.batch_norm})

EMBEDDINGS = frozenset({F.embedding, F.embedding_bag, torch.embedding, torch.embedding_bag})


def refuse_batch_statistics(
    model: nn.Module,
    n: int,
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> None:
    """Refuse a call of `F.batch_norm` or `torch.batch_norm` whose statistics are the batch's.

    n: how many samples there are. Several in one row have channels of their own, as an adaptive
    instance normalisation gives them, or mix, as a proof will tell.

    Raises:
        GradientNormError: naming the module.
    """
    statistics, affine = ("running_mean", "running_var"), ("weight", "bias")
    order = (*statistics, *affine) if func is F.batch_norm else (*affine, *statistics)
    arguments = {**dict(zip(("input", *order, "training"), args, strict=False)), **kwargs}
    if n > 1 and len(arguments["input"]) == 1:
        return
    if arguments.get("training") or any(arguments.get(name) is None for name in statistics):
        where = _owner(model, [arguments.get(name) for name in order])
        raise GradientNormError(
            f"Expected batch normalisation with fixed statistics but {where} normalises by the "
            "batch, so that no sample has a loss gradient of its own. Call `model.eval()` first; "
            "where it keeps no running statistics, replace it by GroupNorm."
        )


_ARGUMENTS: Mapping[Callable[..., Any], tuple[str, ...]] = {
    F.embedding: (
        "input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse",
    ),
    torch.embedding: ("weight", "indices", "padding_idx", "scale_grad_by_freq", "sparse"),
    F.embedding_bag: (
        "input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq",
    ),
    torch.embedding_bag: ("weight", "indices", "offsets", "scale_grad_by_freq"),
}  # fmt: skip
"""Function -> the names of its first arguments, in order, up to the last that matters here."""


def refuse_mixing_embeddings(
    model: nn.Module,
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    is_weight: Callable[[object], bool],
) -> None:
    """Refuse an embedding whose gradient depends on the whole batch, or that writes to its weight.

    func: one of `EMBEDDINGS`. is_weight: whether the gradient of a tensor is computed.

    Raises:
        GradientNormError: naming the module and the option.
    """
    arguments = {**dict(zip(_ARGUMENTS[func], args, strict=False)), **kwargs}
    table = arguments.get("weight")
    if arguments.get("scale_grad_by_freq") and is_weight(table):
        raise GradientNormError(
            f"Expected embeddings whose gradient is a sum over samples but {_owner(model, [table])}"
            " has `scale_grad_by_freq=True`, which divides it by how often a row occurs in the "
            "whole batch, so that no sample has a loss gradient of its own. Set it to False."
        )
    if arguments.get("max_norm") is not None:
        raise GradientNormError(
            f"Expected embeddings that leave their table as it is but {_owner(model, [table])} has "
            f"`max_norm={arguments['max_norm']}`, with which every look-up writes rows of the "
            "table. Renormalise the rows once, `weight.data = torch.renorm(weight.data, norm_type, "
            "0, max_norm)`, and set `max_norm` to None while scores are computed."
        )


def refuse_unready_modules(inventory: Inventory) -> None:
    """Refuse lazy modules that have met no batch, and embeddings that write to their weight.

    inventory: of the model, before it runs for the first time.

    Raises:
        GradientNormError: naming the parameter, or the module.
    """
    model = inventory.modules[0]
    if inventory.has_lazy_tensors:
        tensors = (*model.named_parameters(), *model.named_buffers())
        name = next(name for name, tensor in tensors if nn.parameter.is_lazy(tensor))
        raise GradientNormError(
            f"Expected parameters that have a shape but `{name}` belongs to a lazy module that "
            "no batch has reached. Run the model once, `model(inputs)`, before you ask."
        )
    if inventory.renormalises:
        for module in inventory.modules:
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
                arguments = {"weight": module.weight, "max_norm": module.max_norm}
                refuse_mixing_embeddings(model, F.embedding, (), arguments, lambda _: False)


def _owner(model: nn.Module, tensors: Sequence[Tensor | None]) -> str:
    """Return the name of the module that owns one of the tensors."""
    tensor_ids = {id(tensor) for tensor in tensors if tensor is not None}
    for name, module in model.named_modules():
        if tensor_ids & {id(t) for t in (*module.parameters(False), *module.buffers(False))}:
            return f"`{name or 'the model'}`"
    return "a layer"


def refuse_parameter_hooks(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise if a parameter has a hook on its gradient.

    parameters: name -> parameter, those whose gradients are asked for.

    Raises:
        GradientNormError: naming the parameters, for `Tensor.register_hook` and
            `Tensor.register_post_accumulate_grad_hook`.
    """
    if have_hooks(parameters.values()):
        hooked_names = [name for name, parameter in parameters.items() if have_hooks([parameter])]
        more = f" and {len(hooked_names) - 3} more" if len(hooked_names) > 3 else ""
        raise GradientNormError(
            f"Expected parameters without hooks on their gradients but {hooked_names[:3]}{more} "
            "have some, which may change the gradient of a batch; that of a single sample they "
            "never see. Call `remove()` on what `register_hook` returned and on what "
            "`register_post_accumulate_grad_hook` returned, and register them again afterwards."
        )


def refuse_inference_parameters(parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse parameters that autograd does not record.

    parameters: name -> parameter, those whose gradients are asked for.

    Raises:
        GradientNormError: naming those that were made in `torch.inference_mode`.
    """
    names = [name for name, parameter in parameters.items() if parameter.is_inference()]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise GradientNormError(
            f"Expected parameters that autograd can differentiate by but {names[:3]}{more} were "
            "made in `torch.inference_mode`, and have no gradients. Make or load the model outside "
            "it (`torch.no_grad()` will do instead), or take `copy.deepcopy(model)` outside it."
        )


def module_with_backward_hook(inventory: Inventory) -> str | None:
    """Return the name of a module whose backward hooks may change gradients; None without one."""
    if registry._global_backward_hooks or registry._global_backward_pre_hooks:
        return "every module"
    return inventory.module_with_backward_hook


def refuse_backward_hooks(module: str | None) -> None:
    """Raise if a module has hooks on gradients, which are those of single samples.

    module: its name, as of `module_with_backward_hook`.

    Raises:
        GradientsHooked: it is not None.
    """
    if module is not None:
        raise GradientsHooked(f"{module} has a backward hook, which may change gradients")


TAKES_NODE: Callable[..., Any] = vars(torch._C.TensorBase)["grad_fn"].__get__
"""What is called where a model reads `grad_fn` of a tensor."""


def refuse_tensor_hooks(func: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
    """Raise if a model registers a hook on a tensor: no engine could tell it whose gradient comes.

    Or if it takes a node of autograd's graph, on which it may register some.

    func: what it calls. tensors: of which.

    Raises:
        GradientsHooked: that is `Tensor.register_hook`, or `Tensor.grad_fn` of one that has some.
    """
    if func is Tensor.register_hook:
        raise GradientsHooked("the model registers a hook on a tensor, which may change gradients")
    if func == TAKES_NODE and tensors[0].grad_fn is not None:
        raise GradientsHooked(
            "the model reads `grad_fn` of a tensor, on which hooks may change gradients"
        )


def refuse_nested(operator: str, tensors: Sequence[Tensor]) -> None:
    """Raise if samples and weights meet in a nested tensor.

    operator: its name. tensors: what it takes.

    Raises:
        SamplesNotSeparable: one of them is nested.
    """
    if any(tensor.is_nested for tensor in tensors):
        raise SamplesNotSeparable(f"`{operator}` takes a nested tensor, whose sizes are no numbers")
