"""The networks of the adversarial strategies: a variational autoencoder and a discriminator.

For images (c, h, w) and volumes (c, d, h, w) of any size: convolutions of stride 2, doubling their
width, down to 2 to 3 positions per side and four at most, and their mirror image. Vectors (d,) take
two linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = 4


class VAE(nn.Module):
    """Inputs (n, *shape) -> latent mean and log variance (n, latent) -> inputs again.

    code_size: how many of the latent dimensions the decoder sees; all by default.
    """

    def __init__(
        self, shape: Sequence[int], latent: int, width: int, code_size: int | None = None
    ) -> None:
        super().__init__()
        self.shape, self.code_size = tuple(shape), code_size or latent
        sides = shape[1:]
        stages = [s for s in range(1, STAGES + 1) if min(sides, default=0) >> s >= 2]
        if stages and len(sides) in _LAYERS:
            self.down, self.up = _convolutions(self.shape, width, stages[-1])
            self.small = (width * 2 ** (stages[-1] - 1), *(side >> stages[-1] for side in sides))
        else:
            flat, units = int(torch.Size(shape).numel()), 8 * width
            self.down = nn.Sequential(nn.Flatten(), nn.Linear(flat, units), nn.ReLU())
            self.up = nn.Sequential(nn.ReLU(), nn.Linear(units, flat))
            self.small = (units,)
        units = int(torch.Size(self.small).numel())
        self.mean, self.log_variance = nn.Linear(units, latent), nn.Linear(units, latent)
        self.expand = nn.Linear(self.code_size, units)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance), each (n, latent)."""
        units = self.down(x).flatten(start_dim=1)
        return self.mean(units), self.log_variance(units)

    def decode(self, z: Tensor) -> Tensor:
        """(n, *shape) from (n, latent), of which the first `code_size` are used."""
        units: Tensor = self.expand(z[:, : self.code_size])
        x: Tensor = self.up(units.reshape(len(z), *self.small))
        if x.ndim > 2 and x.shape[1:] != self.shape:
            x = F.interpolate(x, size=self.shape[1:])  # halving rounded an odd side down
        return x.reshape(len(z), *self.shape)


class Discriminator(nn.Module):
    """The logit that a latent mean is of a labelled sample: (n, latent) -> (n,)."""

    def __init__(self, latent: int, hidden: int = 512, layers: int = 2) -> None:
        super().__init__()
        widths = [latent, *[hidden] * layers]
        units = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*units, nn.Linear(widths[-1], 1))

    def forward(self, z: Tensor) -> Tensor:
        """Return one logit per code, (n,)."""
        logits: Tensor = self.layers(z)
        return logits.flatten()


def sample_latents(mean: Tensor, log_variance: Tensor, rng: torch.Generator) -> Tensor:
    """z = mean + standard deviation x noise."""
    noise = torch.randn(mean.shape, generator=rng).to(mean.device)
    return mean + (0.5 * log_variance).exp() * noise


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, variance) from N(0, 1), summed over dimensions, mean over samples."""
    divergences = -0.5 * (1 + log_variance - mean.square() - log_variance.exp())
    return divergences.sum(dim=1).mean()


def squared_error(reconstruction: Tensor, x: Tensor) -> Tensor:
    """|x^ - x|^2, summed over entries as the divergence is over dimensions; mean over samples."""
    return (reconstruction - x).square().flatten(start_dim=1).sum(dim=1).mean()


def towards(logits: Tensor, target: Tensor | float) -> Tensor:
    """Binary cross-entropy of logits (n,) and a target, one for all or (n,)."""
    if isinstance(target, float):
        target = torch.full_like(logits, target)
    return F.binary_cross_entropy_with_logits(logits, target)


_LAYERS: dict[int, tuple[type[nn.Module], type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d),
}


def _convolutions(
    shape: tuple[int, ...], width: int, stages: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """(encoder, decoder): each stage halves or doubles the sides, and the other way the width."""
    conv, deconv, norm = _LAYERS[len(shape) - 1]
    widths = [width * 2**stage for stage in range(stages)]
    down: list[nn.Module] = []
    up: list[nn.Module] = [deconv(width, shape[0], 4, 2, 1)]
    for a, b in pairwise([shape[0], *widths]):
        down += [conv(a, b, 4, 2, 1, bias=False), norm(b), nn.ReLU()]
    for a, b in pairwise(widths):
        up = [deconv(b, a, 4, 2, 1, bias=False), norm(a), nn.ReLU(), *up]
    return nn.Sequential(*down), nn.Sequential(*up)
