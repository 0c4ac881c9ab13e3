"""Image classification: softmax cross-entropy over classes, one label a sample."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ConfigError, ModelError
from upslope.tasks.augmentation import padded_crop
from upslope.tasks.metrics import ClassificationMetrics


@dataclass(frozen=True)
class Classification:
    """One of `num_classes` labels a sample, by softmax and cross-entropy.

    mean, std: one number a channel, of images in 0..1; empty leaves them there.
    Outputs are logits, (n, num_classes), or an object that carries them as `.logits`.
    """

    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    augmentation: Annotated[
        Literal["none", "shift", "flip-crop"],
        Field(description="none; shift: padded crop; flip-crop: padded crop and horizontal flip"),
    ] = "none"
    pad: Annotated[
        int | None, Field(ge=1, description="pixels of a padded crop; an eighth of the image")
    ] = None
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of the target spread over all classes")
    ] = 0.0

    primary = "accuracy"

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(f"Expected at least 2 classes but got {self.num_classes}.")
        if self.classes and len(self.classes) != self.num_classes:
            raise ConfigError(
                f"Expected {self.num_classes} class names but got {len(self.classes)}."
            )
        if len(self.mean) != len(self.std) or any(not s > 0 for s in self.std):
            raise ConfigError(
                "Expected `mean` and `std` to have one number a channel, each std above 0, but "
                f"got {self.mean} and {self.std}."
            )

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Cross-entropy of each sample, (n,), with label smoothing where asked for."""
        logits = self.logits(outputs)
        return F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.label_smoothing
        )

    def logits(self, outputs: Any) -> Tensor:
        """(n, num_classes). Raises ModelError where `outputs` holds no logits."""
        logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
        if not isinstance(logits, Tensor):
            raise ModelError(
                "Expected the model to return logits, a tensor of shape (n, classes), or an object "
                f"that has them as `.logits`, but got {type(outputs).__name__}. Wrap the model."
            )
        return logits

    def metrics(self) -> ClassificationMetrics:
        """A fresh accumulator of accuracy, loss, calibration error and accuracy by class."""
        names = self.classes or tuple(str(i) for i in range(self.num_classes))
        return ClassificationMetrics(self, names)

    def prepare(self, inputs: Tensor) -> Tensor:
        """uint8 (n, c, ...) -> float32 normalised, on their device; floats pass as they are."""
        if inputs.is_floating_point():
            return inputs
        if not self.mean:
            return inputs.float().div_(255)
        self._check_channels(inputs)
        # (x / 255 - mean) / std as one multiply-add over a float copy.
        scale, shift = _affine(self.mean, self.std, inputs.device, inputs.ndim)
        return inputs.float().mul_(scale).add_(shift)

    def augment(
        self, inputs: Tensor, targets: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A random variant of a prepared batch (n, c, h, w); `rng` lives on the CPU.

        The border is black, as it is where images are padded before they are normalised.
        """
        if self.augmentation == "none":
            return inputs, targets
        if inputs.ndim != 4:
            raise ConfigError(
                f"Expected images, (n, c, h, w), for the augmentation {self.augmentation!r} but "
                f"got shape {tuple(inputs.shape)}. Set the augmentation to 'none'."
            )
        pad = self.pad or max(1, min(inputs.shape[2:]) // 8)
        black = None
        if self.mean:
            self._check_channels(inputs)
            black = _affine(self.mean, self.std, inputs.device, inputs.ndim)[1]
        flip = self.augmentation == "flip-crop"
        return padded_crop(inputs, pad, flip=flip, border=black, rng=rng), targets

    def check(self, model: nn.Module, sample: Tensor) -> None:
        """Run a prepared batch of one or more, (n, ...), through the model in eval mode.

        The mode of every module is as before afterwards.

        Raises:
            ModelError: the model fails on it, or its output is not finite logits (n, num_classes).
        """
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                outputs = model(sample)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ModelError(
                f"Expected {type(model).__name__} to take a batch of shape {tuple(sample.shape)} "
                f"but it raised {type(error).__name__}: {error}"
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode
        logits = self.logits(outputs)
        expected = (len(sample), self.num_classes)
        if tuple(logits.shape) != expected:
            raise ModelError(
                f"Expected {type(model).__name__} to return logits of shape {expected}, one row a "
                f"sample and one column a class, but got {tuple(logits.shape)}."
            )
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(
                f"Expected finite logits from {type(model).__name__} but got NaN or infinity. "
                "Look at its weights: a diverged or uninitialised checkpoint gives such outputs."
            )

    def _check_channels(self, inputs: Tensor) -> None:
        if inputs.ndim < 2 or inputs.shape[1] != len(self.mean):
            raise ConfigError(
                f"Expected inputs of {len(self.mean)} channels, as `mean` and `std` have, but got "
                f"shape {tuple(inputs.shape)}."
            )


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, ndim: int
) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (1, c, 1, ...), kept on the device: a copy a batch would wait for it."""
    shape = (1, -1, *(1,) * (ndim - 2))
    centre, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale, shift = 1 / (255 * spread), -centre / spread
    return (
        scale.float().reshape(shape).to(device),
        shift.float().reshape(shape).to(device),
    )
