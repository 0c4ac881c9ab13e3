"""The arguments that the public functions share: which parameters, which norm, how to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm.core.batch import Batch, Inputs
from upslope.gradnorm.core.per_sample_gradients import SCRATCH
from upslope.gradnorm.core.tape import ComputeOptions
from upslope.gradnorm.kernels.refusals import refuse_lazy_modules, refuse_renormalising_modules
from upslope.gradnorm.last_module import find_last_module, owner_of
from upslope.gradnorm.trace.hooks import refuse_parameter_hooks
from upslope.gradnorm.trace.sharing import open_batch

Parameters = str | Iterable[str] | Callable[[str, nn.Parameter], bool] | None
"""Which parameters: None or "all", "last" (the last module with any that the output went through),
names or prefixes of names, or a predicate of name and parameter."""


def select(
    model: nn.Module, parameters: Parameters = None, inputs: Inputs | None = None
) -> dict[str, nn.Parameter]:
    """Return name -> parameter, for those that are asked for and require a gradient.

    model: the network. parameters: which ones. inputs: as for `gradient_norms`, from which "last"
    reads which module the output went through last.

    Raises:
        GradientNormError: none does, a name is not in the model, or one has a gradient hook.
    """
    batch = None if inputs is None else open_batch(model, inputs)
    return select_of_batch(model, parameters, batch)


def select_of_batch(
    model: nn.Module, parameters: Parameters, batch: Batch | None
) -> dict[str, nn.Parameter]:
    """Do the same with a batch that is open already; see `select`."""
    refuse_lazy_modules(model)
    # Before anything runs: such a module writes to its weight in every forward pass.
    refuse_renormalising_modules(model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    every = [] if parameters is None else list(model.named_parameters(remove_duplicate=False))
    known_by: dict[int, list[str]] = {}
    for name, p in every:
        known_by.setdefault(id(p), []).append(name)
    # A tied parameter answers to each of its names.
    names = {name: known_by.get(id(p), [name]) for name, p in trainable.items()}
    if parameters is None or parameters == "all":
        chosen = trainable
    elif parameters == "last":
        last = find_last_module(model, batch)
        chosen = {
            name: p
            for name, p in trainable.items()
            if any(owner_of(n) == last for n in names[name])
        }
    elif callable(parameters):
        chosen = {name: p for name, p in trainable.items() if parameters(name, p)}
    else:
        wanted = [parameters] if isinstance(parameters, str) else list(parameters)
        missing = [w for w in wanted if not any(_under(name, w) for name, _ in every)]
        if missing:
            raise GradientNormError(
                f"Expected `parameters` to name parameters or modules of the model but {missing} "
                f"are none. It has {[n for n, _ in every[:3]]} ... {[n for n, _ in every[-2:]]}."
            )
        chosen = {
            name: p
            for name, p in trainable.items()
            if any(_under(n, w) for n in names[name] for w in wanted)
        }
    if not chosen:
        raise GradientNormError(
            f"Expected at least one parameter that requires a gradient but `parameters="
            f"{parameters!r}` chooses none of {len(trainable)} trainable ones. Unfreeze some with "
            "`requires_grad_(True)`, or choose others."
        )
    refuse_parameter_hooks(chosen)
    return chosen


def _under(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(wanted + ".")


def compute_options(max_memory: int | None, dtype: torch.dtype | None) -> ComputeOptions:
    """The caller's options, checked.

    Raises:
        GradientNormError: a bound that is not positive, or a type that is not a half.
    """
    if max_memory is not None and max_memory <= 0:
        raise GradientNormError(f"Expected `max_memory` to be positive bytes but got {max_memory}.")
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise GradientNormError(
            f"Expected `dtype` to be None, torch.bfloat16 or torch.float16 but got {dtype}. "
            "For float64, convert the model and its inputs."
        )
    return ComputeOptions(SCRATCH if max_memory is None else min(SCRATCH, max_memory), dtype)


def reduction(name: str) -> Callable[[dict[str, Tensor]], Tensor]:
    """From squared norms by parameter to the norm of this name, (n,) float64.

    Raises:
        GradientNormError: there is no norm of this name; or, when it is applied, a norm is not
        finite.
    """
    table = {"global": _global, "tensor-sum": _tensor_sum}
    if name not in table:
        raise GradientNormError(f"Expected `norm` to be one of {sorted(table)} but got {name!r}.")

    def reduce(squares: dict[str, Tensor]) -> Tensor:
        norms = table[name](squares)
        if not bool(torch.isfinite(norms).all()):
            bad = (~torch.isfinite(norms)).nonzero().flatten()[:5].tolist()
            raise GradientNormError(
                f"Expected finite gradients but the norms of samples {bad} are "
                f"{norms[bad].tolist()}, though their losses are finite. Look for roots, divisions "
                "and norms at zero in the model or the loss; or compute in float64."
            )
        return norms

    return reduce


def _global(squares: dict[str, Tensor]) -> Tensor:
    # In double: small tensors' squares would be lost beside those of large ones.
    return torch.stack([s.double() for s in squares.values()]).sum(dim=0).sqrt()


def _tensor_sum(squares: dict[str, Tensor]) -> Tensor:
    return torch.stack([s.double().sqrt() for s in squares.values()]).sum(dim=0)
