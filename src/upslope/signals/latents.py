"""Latent means of a variational autoencoder that has seen no label: SRAAL's start.

Zhang et al. (CVPR 2020) choose the first labels by k-center in the latent space of the generator's
unsupervised branch: an autoencoder trained on all samples with

    5 |x^ - x|^2 + KL,        Adam at 5e-4, batches of 250
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from upslope.options import Options, Steps
from upslope.signals.base import FitContext
from upslope.signals.fitting import readable_batches, seeding, training_steps
from upslope.signals.sraal import BATCH, RATE, WEIGHT, Latent, Width
from upslope.signals.vae import VAE, divergence, sample_latents, squared_error
from upslope.tasks.base import Task


@dataclass(frozen=True)
class Latents(Options):
    """Latent means of an autoencoder trained on the unlabelled: (n, latent)."""

    name: ClassVar[str] = "latents"

    steps: Steps = None
    latent: Latent = 64
    width: Width = 16

    def fit(self, context: FitContext) -> FittedLatents:
        """Train the autoencoder on the unlabelled."""
        with seeding(context):
            vae = VAE(context.dataset.input_shape, self.latent, self.width)
        vae = vae.to(context.device)
        adam = torch.optim.Adam(vae.parameters(), lr=RATE)
        stream = readable_batches(context, context.unlabelled, BATCH)
        steps = training_steps(context, self.steps, BATCH)
        with torch.enable_grad():
            for step in range(steps):
                x = next(stream)
                mean, log_variance = vae.encode(x)
                reconstruction = vae.decode(sample_latents(mean, log_variance, context.rng))
                adam.zero_grad()
                loss = WEIGHT * squared_error(reconstruction, x) + divergence(mean, log_variance)
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                context.progress(step + 1, steps)
        return FittedLatents(vae.eval())


@dataclass(frozen=True)
class FittedLatents:
    """The latent means of a trained autoencoder, (n, latent)."""

    vae: VAE
    name: ClassVar[str] = "latents"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """(n, latent) for a prepared batch."""
        with torch.no_grad():
            return self.vae.encode(inputs.float())[0]
