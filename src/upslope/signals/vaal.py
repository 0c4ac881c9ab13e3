"""VAAL: how unlike the labelled samples one is, to a discriminator (Sinha et al., ICCV 2019).

A variational autoencoder encodes all samples; a discriminator D tells from the latent means mu
which are labelled, and the autoencoder tries to make it say so of all. In turns,

    autoencoder    |x^ - x|^2 + KL   of labelled and unlabelled
                   + BCE(D(mu_L), 1) + BCE(D(mu_U), 1)             twice a step
    discriminator  BCE(D(mu_L), 1) + BCE(D(mu_U), 0)               once a step

with Adam at 5e-4 on both. The score is minus the logit of D in eval mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.options import Options, Steps
from upslope.signals.base import FitContext
from upslope.signals.fitting import (
    batches,
    read,
    readable_batches,
    seeding,
    training_steps,
    without_gradients,
)
from upslope.signals.vae import (
    VAE,
    Discriminator,
    divergence,
    sample_latents,
    squared_error,
    towards,
)
from upslope.tasks.base import Task

BATCH = 128
RATE = 5e-4
TURNS = 2

Latent = Annotated[int, Field(ge=2, description="latent dimensions")]
Width = Annotated[int, Field(ge=1, description="channels of the first stage; the source has 128")]


@dataclass(frozen=True)
class Vaal(Options):
    """How unlike the labelled a sample is, by an autoencoder and a discriminator: (n,)."""

    name: ClassVar[str] = "vaal"

    steps: Steps = None
    latent: Latent = 32
    width: Width = 16

    def fit(self, context: FitContext) -> FittedVaal:
        """Train both networks on the labelled and the unlabelled."""
        vae, discriminator = self.networks(context)
        adam = torch.optim.Adam(vae.parameters(), lr=RATE)
        adam_d = torch.optim.Adam(discriminator.parameters(), lr=RATE)
        labelled = batches(context, context.labelled, BATCH)
        unlabelled = readable_batches(context, context.unlabelled, BATCH)

        def both() -> tuple[Tensor | None, Tensor]:
            labelled_batch = next(labelled, None)
            new = next(unlabelled)
            if labelled_batch is None:
                return None, new
            return read(context, [context.labelled[i] for i in labelled_batch]), new

        steps = training_steps(context, self.steps, BATCH)
        with torch.enable_grad():
            for step in range(steps):
                for _ in range(TURNS):
                    labelled_batch, new = both()
                    adam.zero_grad()
                    with without_gradients(discriminator):
                        generator_loss(
                            vae, discriminator, labelled_batch, new, context.rng
                        ).backward()  # type: ignore[no-untyped-call]
                    adam.step()
                adam_d.zero_grad()
                discriminator_loss(vae, discriminator, labelled_batch, new).backward()  # type: ignore[no-untyped-call]
                adam_d.step()
                context.progress(step + 1, steps)
        return FittedVaal(vae.eval(), discriminator.eval())

    def networks(self, context: FitContext) -> tuple[VAE, Discriminator]:
        """Both, with weights from the context's generator."""
        shape = context.dataset.input_shape
        with seeding(context):
            networks = VAE(shape, self.latent, self.width), Discriminator(self.latent)
        return networks[0].to(context.device), networks[1].to(context.device)


@dataclass(frozen=True)
class FittedVaal:
    """Minus the logit that a sample is labelled: (n,)."""

    vae: VAE
    discriminator: Discriminator
    name: ClassVar[str] = "vaal"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """(n,) for a prepared batch."""
        with torch.no_grad():
            mean, _ = self.vae.encode(inputs.float())
            logits: Tensor = self.discriminator(mean)
            return -logits


def generator_loss(
    vae: VAE,
    discriminator: Discriminator,
    labelled_batch: Tensor | None,
    new: Tensor,
    rng: torch.Generator,
) -> Tensor:
    """The autoencoder's. labelled_batch, new: inputs (n, *shape)."""
    total = new.new_zeros(())
    for x in (labelled_batch, new):
        if x is not None:
            mean, log_variance = vae.encode(x)
            reconstruction = vae.decode(sample_latents(mean, log_variance, rng))
            total = total + squared_error(reconstruction, x) + divergence(mean, log_variance)
            total = total + towards(discriminator(mean), 1.0)
    return total


def discriminator_loss(
    vae: VAE, discriminator: Discriminator, labelled_batch: Tensor | None, new: Tensor
) -> Tensor:
    """The discriminator's; the autoencoder is held."""
    with torch.no_grad():
        means = [vae.encode(x)[0] for x in (labelled_batch, new) if x is not None]
    loss = towards(discriminator(means[-1]), 0.0)
    return loss + towards(discriminator(means[0]), 1.0) if labelled_batch is not None else loss
