"""Hooks that see, and may change, gradients on their way.

A hook on a parameter is given the gradient of the whole batch, which the engine never forms: it is
refused by name. A hook on a module or on a tensor of the forward pass is run by autograd in every
backward pass; where there is one, the samples go one by one, each with the gradient that it has
alone. Forward hooks and forward pre-hooks are part of the model and need nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules import module as registry

from upslope.errors import GradientNormError
from upslope.gradnorm.core.restoring import modules_of


def refuse_parameter_hooks(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise if a parameter has a hook on its gradient.

    parameters: name -> parameter, those whose gradients are asked for.

    Raises:
        GradientNormError: naming the parameters, for `Tensor.register_hook` and
            `Tensor.register_post_accumulate_grad_hook`.
    """
    hooked = [name for name, parameter in parameters.items() if _has_hook(parameter)]
    if hooked:
        more = f" and {len(hooked) - 3} more" if len(hooked) > 3 else ""
        raise GradientNormError(
            f"Expected parameters without hooks on their gradients but {hooked[:3]}{more} have "
            "some, which may change the gradient of a batch; that of a single sample they never "
            "see. Call `remove()` on what `register_hook` returned and on what "
            "`register_post_accumulate_grad_hook` returned, and register them again afterwards."
        )


def _has_hook(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def module_with_backward_hook(model: nn.Module) -> str | None:
    """Return the name of a module whose backward hooks may change gradients; None without one."""
    if registry._global_backward_hooks or registry._global_backward_pre_hooks:
        return "every module"
    for module in modules_of(model):
        if module._backward_hooks or module._backward_pre_hooks:
            name = next(name for name, other in model.named_modules() if other is module)
            return f"`{name or 'the model'}`"
    return None
