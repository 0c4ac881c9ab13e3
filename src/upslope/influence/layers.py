"""Linear and convolution layers as EK-FAC sees them: patches in, gradients of the outputs out.

The gradient of sample n by such a layer's weight is a sum of outer products over the positions t
of its output, G_n = sum_t g_nt a_nt^T (out, in), with g the gradient of the output and a the patch
of the input that makes it; a one is appended to the patch for the bias.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.gradnorm.kernels.conv.patches import windows
from upslope.influence.network import Theta

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Layer:
    """A layer whose weight is differentiated, and its bias too where `bias` names one."""

    module: nn.Linear | Convolution
    weight: str
    bias: str | None

    def block(self, theta: Theta) -> Tensor:
        """Return the layer's entries of a vector as a matrix (out, in [+ 1])."""
        weight = theta[self.weight].flatten(1)
        return weight if self.bias is None else torch.cat([weight, theta[self.bias][:, None]], 1)

    def unblock(self, block: Tensor, theta: Theta) -> Theta:
        """Return the inverse of `block`, in the shapes of theta."""
        if self.bias is None:
            return {self.weight: block.view_as(theta[self.weight])}
        return {
            self.weight: block[:, :-1].reshape(theta[self.weight].shape),
            self.bias: block[:, -1],
        }

    def patches(self, inputs: Tensor) -> Tensor:
        """Return the inputs at each position, (n, positions, in [+ 1])."""
        n = len(inputs)
        if isinstance(self.module, nn.Linear):
            patches = inputs.reshape(n, -1, inputs.shape[-1])
        else:
            patches = _unfold(inputs, self.module)
        if self.bias is None:
            return patches
        return torch.cat([patches, patches.new_ones(*patches.shape[:2], 1)], dim=2)

    def gradients(self, g: Tensor) -> Tensor:
        """Return the gradient of the output as (n, positions, out)."""
        if isinstance(self.module, nn.Linear):
            return g.reshape(len(g), -1, g.shape[-1])
        return g.flatten(2).transpose(1, 2)


def layers_of(model: nn.Module, names: Iterable[str]) -> list[Layer]:
    """Those of the named parameters that are weights of plain linear or convolution layers.

    Not those of grouped or circular convolutions or of subclasses, nor weights that several modules
    share.
    """
    wanted_names = set(names)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    every = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    layers = []
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        # A subclass may use its weight in another way.
        if leaf != "weight" or type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            continue
        assert isinstance(module, nn.Linear | Convolution)
        if isinstance(module, Convolution) and (module.groups, module.padding_mode) != (1, "zeros"):
            continue
        if every.count(id(module.weight)) > 1:
            continue
        bias = f"{owner}.bias" if owner else "bias"
        own_bias = bias in wanted_names and every.count(id(module.bias)) == 1
        layers.append(Layer(module, name, bias if own_bias else None))
    return layers


class LayerRecord:
    """What went through each layer in one forward pass."""

    def __init__(self) -> None:
        self.inputs: dict[str, list[Tensor]] = {}
        self.outputs: dict[str, list[Tensor]] = {}


@contextmanager
def watching(layers: Iterable[Layer]) -> Iterator[LayerRecord]:
    """Records the layers' inputs and outputs while it lasts."""
    record = LayerRecord()

    def watch(layer: Layer) -> object:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            record.inputs.setdefault(layer.weight, []).append(args[0].detach().clone())
            record.outputs.setdefault(layer.weight, []).append(output)
            # What follows may overwrite its input, as nn.ReLU(inplace=True) does.
            return output.clone()

        return layer.module.register_forward_hook(hook)

    handles = [watch(layer) for layer in layers]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def _unfold(x: Tensor, conv: Convolution) -> Tensor:
    """Return (n, positions, c * kernel) for (n, c, ...), entries in the order of the weight's."""
    reach = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    if conv.padding == "same":
        sides = [(r // 2, r - r // 2) for r in reach]
    elif conv.padding == "valid":
        sides = [(0, 0) for _ in reach]
    else:
        sides = [(int(p), int(p)) for p in conv.padding]
    x = F.pad(x, [side for pair in reversed(sides) for side in pair])
    x = windows(x, conv.kernel_size, conv.stride, conv.dilation)
    # (n, c, positions..., kernel...) -> (n, positions, c, kernel)
    return x.flatten(2, 1 + len(reach)).movedim(1, 2).flatten(2)
