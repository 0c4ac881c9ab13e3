"""VAAL and SRAAL: the samples that a discriminator finds least like the labelled ones.

The networks that tell are signals; what is selected is the highest score. See
`upslope.signals.vaal` (Sinha et al., ICCV 2019) and `upslope.signals.sraal` (Zhang et al., CVPR
2020) for the losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from upslope.options import Steps
from upslope.pool import Need
from upslope.strategies.base import TopStrategy
from upslope.strategies.core_set import CoreSet


@dataclass(frozen=True)
class VAAL(TopStrategy):
    """The candidates least like labelled samples, to an autoencoder's discriminator."""

    name: ClassVar[str] = "vaal"
    reference: ClassVar[str] = "Sinha, Ebrahimi and Darrell, ICCV 2019"
    signal_cost: ClassVar[str] = "a variational autoencoder and a discriminator, trained each cycle"
    best_for: ClassVar[str] = "large budgets"

    steps: Steps = None
    latent: Annotated[int, Field(ge=2, description="latent dimensions")] = 32
    width: Annotated[
        int, Field(ge=1, description="channels of the first stage; the source has 128")
    ] = 16

    @property
    def needs(self) -> tuple[Need, ...]:
        """Minus the discriminator's logit."""
        return (Need.of(self.name, steps=self.steps, latent=self.latent, width=self.width),)


@dataclass(frozen=True)
class LatentCoreSet(CoreSet):
    """SRAAL's start: k-center among the latent means of an autoencoder that saw no label."""

    name: ClassVar[str] = "sraal-start"

    steps: Steps = None
    latent: Annotated[int, Field(ge=2)] = 64
    width: Annotated[int, Field(ge=1)] = 16

    @property
    def needs(self) -> tuple[Need, ...]:
        """Return the need for the latent means."""
        options = {"steps": self.steps, "latent": self.latent, "width": self.width}
        return (Need.of("latents", labelled=True, **options),)


@dataclass(frozen=True)
class SRAAL(VAAL):
    """VAAL with a state of the unlabelled that grows with their uncertainty."""

    name: ClassVar[str] = "sraal"
    reference: ClassVar[str] = "Zhang et al., CVPR 2020"
    signal_cost: ClassVar[str] = "a generator, a classifier and a discriminator, trained each cycle"

    latent: Annotated[int, Field(ge=2, description="latent dimensions; the source has 200")] = 64
    initial: Annotated[
        Literal["shared", "k-center"],
        Field(description="initial set: that of all strategies, or the source's own"),
    ] = "shared"

    @property
    def start(self) -> LatentCoreSet | None:
        """Chooses the initial set: None for the one that all strategies share."""
        if self.initial == "shared":
            return None
        return LatentCoreSet(steps=self.steps, latent=self.latent, width=self.width)
