"""Opacus and BackPACK, each given what it needs to run at all on the same function.

Both hook modules, so in-place activations are taken out of place. Opacus refuses batch
normalisation, in evaluation mode as well: each is replaced by the affine map it then is, with a
sampler registered for it; LSTMs by Opacus's own; attention by four linear layers, as Opacus's
own gives another function with `batch_first` (1.6.0: the heads of its output are not put back
last). What it refuses after that is shown as refused.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from upslope.gradnorm import entropy

if TYPE_CHECKING:
    from speed.networks import Network, Run


class NotInstalledError(Exception):
    """The package is not installed."""


def opacus_hooks(network: Network, device: str) -> Run:
    """GradSampleModule: every sample's whole gradient, layer by layer."""
    opacus = _load("opacus.grad_sample", "opacus")
    model = opacus.GradSampleModule(_for_opacus(network, device), loss_reduction="sum")
    parameters = list(model.parameters())

    def run(x: Tensor) -> Tensor:
        entropy(model(x)).sum().backward()
        norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in parameters])
        model.zero_grad(set_to_none=True)
        return norms.norm(dim=0)

    return run


def opacus_ghost(network: Network, device: str) -> Run:
    """GradSampleModuleFastGradientClipping: ghost norms where Opacus has them."""
    opacus = _load("opacus.grad_sample.grad_sample_module_fast_gradient_clipping", "opacus")
    model = opacus.GradSampleModuleFastGradientClipping(
        _for_opacus(network, device),
        loss_reduction="sum",
        max_grad_norm=1.0,
        use_ghost_clipping=True,
    )

    def run(x: Tensor) -> Tensor:
        entropy(model(x)).sum().backward()
        norms = torch.stack([p._norm_sample for p in model.parameters()]).norm(dim=0)
        model.zero_grad(set_to_none=True)
        return norms

    return run


def backpack(network: Network, device: str) -> Run:
    """BatchL2Grad: squared norms of every sample's gradient, layer by layer."""
    package = _load("backpack", "backpack-for-pytorch")
    extension = _load("backpack.extensions", "backpack-for-pytorch").BatchL2Grad
    model = package.extend(_out_of_place(network.model(device)))
    parameters = dict(model.named_parameters())

    def run(x: Tensor) -> Tensor:
        model.zero_grad(set_to_none=True)
        with package.backpack(extension()):
            entropy(model(x)).sum().backward()
        lacking = [name for name, p in parameters.items() if not hasattr(p, "batch_l2")]
        if lacking:
            raise NotImplementedError(f"gives no batch_l2 for {lacking[0]}")
        squares = torch.stack([p.batch_l2 for p in parameters.values()]).sum(dim=0)
        for p in parameters.values():
            del p.batch_l2
        return squares.sqrt()

    return run


class Frozen(nn.Module):
    """Batch normalisation in evaluation mode: an affine map a channel."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.weight, self.bias = norm.weight, norm.bias
        # Plain attributes: Opacus refuses modules with buffers.
        self.mean, self.scale = norm.running_mean, (norm.running_var + norm.eps).rsqrt()

    def normalised(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 2)
        return (x - self.mean.view(shape)) * self.scale.view(shape)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 2)
        return self.normalised(x) * self.weight.view(shape) + self.bias.view(shape)


class Attention(nn.Module):
    """Self-attention of these weights, as Opacus reads it: a linear layer each."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        weights = attention.in_proj_weight.detach().chunk(3)
        biases = attention.in_proj_bias.detach().chunk(3)
        linears = [nn.Linear(attention.embed_dim, attention.embed_dim) for _ in weights]
        with torch.no_grad():
            for linear, weight, bias in zip(linears, weights, biases, strict=True):
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
        self.projections = nn.ModuleList(linears)
        self.out = nn.Linear(attention.embed_dim, attention.embed_dim)
        self.out.load_state_dict(attention.out_proj.state_dict())

    def forward(self, x: Tensor, *_: Tensor, **__: Any) -> tuple[Tensor, None]:
        q, k, v = (
            linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for linear in self.projections
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(y), None


def _frozen_sampler(
    layer: Frozen, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    x_hat = layer.normalised(activations[0])
    return {
        layer.weight: (x_hat * backprops).flatten(2).sum(dim=2),
        layer.bias: backprops.flatten(2).sum(dim=2),
    }


def _for_opacus(network: Network, device: str) -> nn.Module:
    _load("opacus.grad_sample", "opacus").register_grad_sampler(Frozen)(_frozen_sampler)
    model = _out_of_place(network.model(device))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, Frozen(child))
            elif isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, Attention(child))
    validator = _load("opacus.validators", "opacus").ModuleValidator
    fixed: nn.Module = validator.fix(model.train())
    return fixed.to(device)  # in training mode: Opacus records nothing otherwise


def _out_of_place(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def _load(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"not installed (pip install {package})") from error
