"""Classification of images and of volumes: softmax cross-entropy, one label per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ConfigError
from upslope.tasks.augmentation import padded_crop
from upslope.tasks.one_class import LabelSmoothing, OneClassTask
from upslope.tasks.photographs import colour_jitter, resized_crop
from upslope.tasks.views import mean_over_views
from upslope.tasks.volumes import wedge_symmetry

_HELP = (
    "none; shift: padded crop; flip-crop: padded crop and horizontal flip; photographs: resized "
    "crop, colour and horizontal flip, the last not with -unmirrored; of volumes, what keeps "
    "the missing wedge: half-turns, with a shift, or wedge-symmetries, mirror images too"
)


@dataclass(frozen=True)
class Classification(OneClassTask):
    """One of `num_classes` labels per sample, by softmax and cross-entropy.

    mean, std: one number per channel, of images in 0..1; empty leaves them there.
    Outputs are logits, (n, num_classes), or an object that carries them as `.logits`.
    """

    augmentation: Annotated[
        Literal[
            "none",
            "shift",
            "flip-crop",
            "photographs",
            "photographs-unmirrored",
            "half-turns",
            "wedge-symmetries",
        ],
        Field(description=_HELP),
    ] = "none"
    pad: Annotated[
        int | None,
        Field(ge=1, description="pixels of a shift; an eighth of an image, a 16th of a volume"),
    ] = None
    area: Annotated[
        float,
        Field(gt=0, le=1, description="of photographs: smallest share of an image in a crop"),
    ] = 0.35
    colour: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="of photographs: largest change of brightness, contrast and saturation",
        ),
    ] = 0.2
    label_smoothing: LabelSmoothing = 0.0
    views: Annotated[
        Literal["none", "flip", "flip-shift"],
        Field(
            description="evaluation takes the mean posterior over: the image; it and its mirror "
            "image; these and both shifted by a pixel, twice; scores take the image alone"
        ),
    ] = "none"

    name = "classification"
    mirrors_on_demand: ClassVar[bool] = True

    def predict(self, model: nn.Module, inputs: Tensor) -> Any:
        """Return the outputs for a prepared batch; with `views`, the logarithm of their mean
        posterior.
        """
        if self.views == "none":
            return model(inputs)
        self._need(inputs, 4, "images, (n, c, h, w),", f"views {self.views!r}", "views")
        shift = 1 if self.views == "flip-shift" else 0
        return mean_over_views(
            lambda x: self.logits(model(x)), inputs, shift, border=self.border_value(inputs)
        )

    def augment(
        self,
        inputs: Tensor,
        targets: Tensor,
        rng: torch.Generator,
        *,
        mirrored: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return a random variant of a prepared batch, (n, c, h, w) or, of volumes, (n, c, z, y,
        x).

        The border of an image is black, as it is where images are padded before they are
        normalised; volumes are shifted around their ends. `rng` lives on the CPU. mirrored: (n,),
        which images flip-crop and photographs mirror; by chance where None.
        """
        if self.augmentation == "none":
            return inputs, targets
        if self.augmentation in ("half-turns", "wedge-symmetries"):
            self._need(inputs, 5, "volumes, (n, c, z, y, x),")
            shift = self.pad or max(1, min(inputs.shape[2:]) // 16)
            mirror = self.augmentation == "wedge-symmetries"
            return wedge_symmetry(inputs, shift, mirror=mirror, rng=rng), targets
        self._need(inputs, 4, "images, (n, c, h, w),")
        if self.augmentation in ("photographs", "photographs-unmirrored"):
            flip = self.augmentation == "photographs"
            images = resized_crop(inputs, self.area, flip=flip, rng=rng, mirrored=mirrored)
            if self.colour:
                mean, std = self.statistics_of(images)
                images = colour_jitter(images, self.colour, mean=mean, std=std, rng=rng)
            return images, targets
        pad = self.pad or max(1, min(inputs.shape[2:]) // 8)
        flip = self.augmentation == "flip-crop"
        border = self.border_value(inputs)
        images = padded_crop(inputs, pad, flip=flip, border=border, rng=rng, mirrored=mirrored)
        return images, targets

    def check(self, model: nn.Module, sample: Tensor) -> None:
        """Run a prepared batch of one or more, (n, ...), through the model in eval mode.

        The mode of every module is as before afterwards.

        Raises:
            ModelError: the model fails on it, or its output is not finite logits (n, num_classes).
        """
        self.check_outputs(
            model, sample, (), "logits", "one row per sample and one column per class"
        )

    def _need(
        self, inputs: Tensor, dimensions: int, what: str, user: str = "", option: str = ""
    ) -> None:
        if inputs.ndim != dimensions:
            user = user or f"augmentation {self.augmentation!r}"
            raise ConfigError(
                f"Expected {what} for the {user} but got shape {tuple(inputs.shape)}. Set the "
                f"{option or 'augmentation'} to 'none'."
            )
