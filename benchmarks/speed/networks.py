"""The networks: a line each in `NETWORKS`. Built from a seed, so every method gets its own copy.

All run in evaluation mode, with statistics and affine parameters of batch normalisation that are
neither 0 nor 1, and with a head whose logits have a spread of about 1.5: at a flat posterior the
gradient of the entropy vanishes, and relative errors would be those of a number near zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from speed import layers
from upslope.models import build

SEED = 0

Run = Callable[[Tensor], Tensor | None]
"""A method on one network: samples (n, ...) -> norms (n,), or None where it computes none."""


@dataclass(frozen=True)
class Network:
    """make: a fresh module. shape: of one sample. words: vocabulary, for networks on words."""

    title: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    words: int = 0

    @property
    def memory_format(self) -> torch.memory_format | None:
        """The channels-last format of its inputs; None for networks on words."""
        formats = {3: torch.channels_last, 4: torch.channels_last_3d}
        return formats.get(len(self.shape))

    def model(self, device: str = "cpu") -> nn.Module:
        """The same weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = self.make()
            _settle(model, self._draw(4))
        return model.to(device).eval()

    def inputs(self, n: int, device: str = "cpu") -> Tensor:
        """(n, *shape), the same samples at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED + 1)
            return self._draw(n).to(device)

    def _draw(self, n: int) -> Tensor:
        if self.words:
            return torch.randint(self.words, (n, *self.shape))
        return torch.randn(n, *self.shape)


def _settle(model: nn.Module, x: Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.add_(0.2 * torch.randn_like(norm.weight))
            norm.bias.add_(0.2 * torch.randn_like(norm.bias))
            norm.momentum = 1.0  # the statistics of x alone
        if norms:
            model.train()(x)
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.momentum = 0.1
            norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean))
            norm.running_var.mul_((0.2 * torch.randn_like(norm.running_var)).exp())
        head = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        head.weight.mul_(1.5 / model.eval()(x).std(dim=1).mean())


def _ours(name: str, shape: tuple[int, ...], classes: int) -> Callable[[], nn.Module]:
    return lambda: build(name, num_classes=classes, input_shape=shape)


NETWORKS: dict[str, Network] = {
    "cifar": Network(
        "ResNet-18 (CIFAR form), 3x32x32",
        _ours("resnet18-cifar", (3, 32, 32), 10),
        (3, 32, 32),
        32,
    ),
    "resnet64": Network("ResNet-18, 3x64x64", _ours("resnet18", (3, 64, 64), 100), (3, 64, 64), 32),
    "resnet112": Network(
        "ResNet-18, 3x112x112", _ours("resnet18", (3, 112, 112), 100), (3, 112, 112), 32
    ),
    "dilated": Network("dilated segmentation, 3x96x96", layers.dilated, (3, 96, 96), 16),
    "resnet3d": Network(
        "ResNet-18 in 3D, 1x32x32x32", lambda: layers.resnet18_3d(64), (1, 32, 32, 32), 4
    ),
    "resnet3d-slim": Network(
        "ResNet-18 in 3D, width 16, 1x32x32x32",
        lambda: layers.resnet18_3d(16),
        (1, 32, 32, 32),
        8,
    ),
    "vit": Network("ViT-Ti, patches of 4, 3x32x32", layers.VisionTransformer, (3, 32, 32), 32),
    "bert": Network("BERT-tiny encoder, 128 words", layers.TextEncoder, (128,), 32, words=30_522),
    "lstm": Network(
        "LSTM of two layers, 64 words",
        lambda: layers.TextRecurrent(nn.LSTM),
        (64,),
        64,
        words=10_000,
    ),
    "gru": Network(
        "GRU of two layers, 64 words", lambda: layers.TextRecurrent(nn.GRU), (64,), 64, words=10_000
    ),
}
