"""SRAAL: VAAL whose unlabelled state is as uncertain as the sample is (Zhang et al., CVPR 2020).

The online indicator reads from the task model's posterior p how uncertain a sample is,

    u = 1 - max(p) MinVar / Var(p),

Var(p) the variance of p over classes, MinVar the least that is possible at that maximum: all other
classes equal. The unified representation generator is an autoencoder whose latent means carry
reconstruction in their first half and the label in their second. In turns,

    generator      5 |x^ - x|^2 + KL   of labelled and unlabelled
                   + BCE(D(mu_L), 1) + BCE(D(mu_U), 1) + 5 CE(classifier(second half of mu_L), y)
    discriminator  BCE(D(mu_L), 0) + BCE(D(mu_U), u)

with Adam at 5e-4, times 0.85 every 666 steps, thirty times. The score is the logit of D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.datasets.readable import first_readable
from upslope.errors import ModelError
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

BATCH = 250
RATE = 5e-4
DECAY = 0.85
EVERY = 666
DECAYS = 30
WEIGHT = 5.0

Latent = Annotated[int, Field(ge=2, description="latent dimensions; the source has 200")]
Width = Annotated[int, Field(ge=1, description="channels of the first stage")]


def indicator(p: Tensor) -> Tensor:
    """u = 1 - max(p) MinVar / Var(p): 0 for a certain posterior. p: (n, C), returns (n,)."""
    classes = p.shape[1]
    top = p.amax(dim=1)
    variance = p.var(dim=1, correction=0)
    rest = (1 - top) / max(classes - 1, 1)
    least = ((top - 1 / classes).square() + (classes - 1) * (rest - 1 / classes).square()) / classes
    # At the uniform posterior both are 0, and equal.
    return 1 - top * torch.where(variance > 0, least / variance, 1.0).clamp(max=1)


@dataclass(frozen=True)
class Sraal(Options):
    """How unlike the labelled a sample is, relabelled by its uncertainty: (n,)."""

    name: ClassVar[str] = "sraal"

    steps: Steps = None
    latent: Latent = 64
    width: Width = 16

    def fit(self, context: FitContext) -> FittedSraal:
        """Train generator, classifier and discriminator on the labelled and the unlabelled."""
        vae, classifier, discriminator = self.networks(context)
        adam = torch.optim.Adam([*vae.parameters(), *classifier.parameters()], lr=RATE)
        adam_d = torch.optim.Adam(discriminator.parameters(), lr=RATE)
        labelled = batches(context, context.labelled, BATCH)
        unlabelled = readable_batches(context, context.unlabelled, BATCH)
        steps = training_steps(context, self.steps, BATCH)
        with torch.enable_grad():
            for step in range(steps):
                places = next(labelled, [])
                labelled_part = None
                if places:
                    y = context.targets[places].to(context.device)
                    labelled_part = (read(context, [context.labelled[i] for i in places]), y)
                new = next(unlabelled)
                with torch.no_grad():
                    logits = context.task.logits(context.model(new))
                u = indicator(logits.float().softmax(dim=1))
                adam.zero_grad()
                with without_gradients(discriminator):
                    loss = generator_loss(
                        vae, classifier, discriminator, labelled_part, new, context.rng
                    )
                    loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                adam_d.zero_grad()
                x = labelled_part[0] if labelled_part else None
                discriminator_loss(vae, discriminator, x, new, u).backward()  # type: ignore[no-untyped-call]
                adam_d.step()
                for group in (*adam.param_groups, *adam_d.param_groups):
                    group["lr"] = RATE * DECAY ** min(DECAYS, (step + 1) // EVERY)
                context.progress(step + 1, steps)
        return FittedSraal(vae.eval(), discriminator.eval())

    def check(self, model: nn.Module, task: Task, inputs: Tensor) -> None:
        """Raise ModelError for a task with more than one label per sample."""
        with torch.no_grad():
            shape = tuple(task.logits(model(inputs)).shape)
        if len(shape) != 2:
            raise ModelError(
                "Expected one label per sample for sraal, whose generator learns it, but the model "
                f"puts out {shape[1:]} for each. Use vaal, which needs no labels."
            )

    def networks(self, context: FitContext) -> tuple[VAE, nn.Linear, Discriminator]:
        """All three, with weights from the context's generator."""
        half = self.latent // 2
        # Not of the data set, which may have no names for its classes.
        with torch.no_grad():
            sample = context.task.prepare(first_readable(context.dataset).to(context.device))
            classes = context.task.logits(context.model(sample)).shape[1]
        with seeding(context):
            vae = VAE(context.dataset.input_shape, self.latent, self.width, code_size=half)
            classifier = nn.Linear(self.latent - half, classes)
            discriminator = Discriminator(self.latent, layers=4)
        device = context.device
        return vae.to(device), classifier.to(device), discriminator.to(device)


@dataclass(frozen=True)
class FittedSraal:
    """The logit that a sample is unlabelled and uncertain: (n,)."""

    vae: VAE
    discriminator: Discriminator
    name: ClassVar[str] = "sraal"

    def compute(self, model: nn.Module, task: Task, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """(n,) for a prepared batch."""
        with torch.no_grad():
            logits: Tensor = self.discriminator(self.vae.encode(inputs.float())[0])
            return logits


def generator_loss(
    vae: VAE,
    classifier: nn.Module,
    discriminator: Discriminator,
    labelled_part: tuple[Tensor, Tensor] | None,
    new: Tensor,
    rng: torch.Generator,
) -> Tensor:
    """The generator's. labelled_part: inputs and labels; new: unlabelled inputs."""
    total = new.new_zeros(())
    for x, y in [*([labelled_part] if labelled_part else []), (new, None)]:
        mean, log_variance = vae.encode(x)
        reconstruction = vae.decode(sample_latents(mean, log_variance, rng))
        total = total + WEIGHT * squared_error(reconstruction, x) + divergence(mean, log_variance)
        total = total + towards(discriminator(mean), 1.0)
        if y is not None:
            total = total + WEIGHT * F.cross_entropy(classifier(mean[:, vae.code_size :]), y)
    return total


def discriminator_loss(
    vae: VAE, discriminator: Discriminator, labelled_part: Tensor | None, new: Tensor, u: Tensor
) -> Tensor:
    """The discriminator's; the generator is held. u: (n,), the state of the unlabelled."""
    with torch.no_grad():
        means = [vae.encode(x)[0] for x in (labelled_part, new) if x is not None]
    loss = towards(discriminator(means[-1]), u)
    return loss + towards(discriminator(means[0]), 0.0) if labelled_part is not None else loss
