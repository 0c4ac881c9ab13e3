"""Base of the tasks: inputs are prepared, and outputs are read and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from upslope.autodiff import evaluating
from upslope.errors import ConfigError, ModelError, UpslopeError
from upslope.memory import raise_memory_error


@dataclass(frozen=True)
class CommonTask:
    """`num_classes` numbers per sample, or per position of a sample: (n, num_classes, ...).

    mean, std: one number per channel, of images in 0..1; empty leaves them there. classes: names of
    the classes, labels or numbers that the model puts out.
    """

    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.classes and len(self.classes) != self.num_classes:
            raise ConfigError(
                f"Expected {self.num_classes} class names but got {len(self.classes)}."
            )
        is_finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != len(self.std) or not is_finite or any(not s > 0 for s in self.std):
            raise ConfigError(
                "Expected `mean` and `std` to have one number per channel, finite, each std above "
                f"0, but got {self.mean} and {self.std}."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names given, or the numbers of the classes."""
        return self.classes or tuple(str(i) for i in range(self.num_classes))

    def read_outputs(self, outputs: Any) -> Tensor:
        """Return the tensor (n, num_classes, ...) in `outputs`; ModelError where there is none."""
        values = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
        if not isinstance(values, Tensor):
            raise ModelError(
                "Expected the model to return logits, a tensor of shape (n, classes, ...), or an "
                f"object that has them as `.logits`, but got {type(outputs).__name__}. Wrap the "
                "model."
            )
        return values

    def predict(self, model: nn.Module, inputs: Tensor) -> Any:
        """Return the outputs for a prepared batch."""
        return model(inputs)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return uint8 (n, c, ...) as normalised float32, on their device; floats as they are."""
        if inputs.is_floating_point():
            return inputs
        if not self.mean:
            return inputs.float().div_(255)
        self.check_channels(inputs)
        # (x / 255 - mean) / std as one multiply-add over a float copy.
        scale, shift = _affine(self.mean, self.std, inputs.device, inputs.ndim)
        return inputs.float().mul_(scale).add_(shift)

    def border_value(self, inputs: Tensor) -> Tensor | None:
        """Return (1, c, 1, ...): what `prepare` makes of black, for prepared `inputs`; None for
        0.
        """
        if not self.mean:
            return None
        self.check_channels(inputs)
        return _affine(self.mean, self.std, inputs.device, inputs.ndim)[1]

    def statistics_of(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (mean, std), each (1, c, 1, ...), that `prepare` normalised `inputs` by."""
        if not self.mean:
            return inputs.new_zeros(1), inputs.new_ones(1)
        self.check_channels(inputs)
        shape = (1, -1, *(1,) * (inputs.ndim - 2))
        return inputs.new_tensor(self.mean).reshape(shape), inputs.new_tensor(self.std).reshape(
            shape
        )

    def check_channels(self, inputs: Tensor) -> None:
        """Raise ConfigError unless (n, c, ...) has the channels of `mean` and `std`."""
        if inputs.ndim < 2 or inputs.shape[1] != len(self.mean):
            raise ConfigError(
                f"Expected inputs of {len(self.mean)} channels, as `mean` and `std` have, but got "
                f"shape {tuple(inputs.shape)}."
            )

    def augment(
        self,
        inputs: Tensor,
        targets: Tensor,
        rng: torch.Generator,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Return the batch as it is; tasks that know better change it."""
        return inputs, targets

    def check_outputs(
        self,
        model: nn.Module,
        sample: Tensor,
        positions: tuple[int, ...],
        what: str,
        per_position: str,
    ) -> None:
        """Run `sample` (n, ...) through the model in eval mode; modes are as before afterwards.

        positions: what follows (n, num_classes) in the shape wanted; what: "logits"; per_position:
        the shape in words.

        Raises:
            ModelError: the model fails on it, or its outputs are of another shape or not finite.
        """
        try:
            with evaluating(model), torch.no_grad():
                outputs = model(sample)
        except UpslopeError:
            raise
        except Exception as error:  # whatever a network of somebody else's may raise
            raise_memory_error(error)
            raise ModelError(
                f"Expected {type(model).__name__} to take a batch of shape {tuple(sample.shape)} "
                f"but it raised {type(error).__name__}: {error}{precision_remedy(model, sample)}"
            ) from error
        values = self.read_outputs(outputs)
        shape = (len(sample), self.num_classes, *positions)
        if tuple(values.shape) != shape:
            raise ModelError(
                f"Expected {type(model).__name__} to return {what} of shape {shape}, "
                f"{per_position}, "
                f"but got {tuple(values.shape)}."
            )
        if not bool(torch.isfinite(values).all()):
            raise ModelError(
                f"Expected finite {what} from {type(model).__name__} but got NaN or infinity. "
                "Look at its weights: a diverged or uninitialised checkpoint gives such outputs."
            )


def precision_remedy(model: nn.Module, inputs: Tensor) -> str:
    """Return what to do about weights of another precision than the inputs; empty for others.

    For the message of an error that `model(inputs)` raised: a model may cast its inputs itself.
    """
    other = next(
        (p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype != inputs.dtype),
        None,
    )
    if other is None or inputs.dtype != torch.float32:
        return ""
    return (
        f". Its weights are {other}, its inputs {inputs.dtype}: convert it to single precision, "
        "model.float()."
    )


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, ndim: int
) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), each (1, c, 1, ...), kept on the device: a copy a batch would wait for
    it.
    """
    shape = (1, -1, *(1,) * (ndim - 2))
    centre, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale, shift = 1 / (255 * spread), -centre / spread
    return (
        scale.float().reshape(shape).to(device),
        shift.float().reshape(shape).to(device),
    )
