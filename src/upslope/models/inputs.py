"""The form that trained weights want images in: the normalisation and size of their training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from upslope.errors import ConfigError


@dataclass(frozen=True)
class ImageForm:
    """mean, std: one number per channel, of images in 0..1, or one for all channels. size: pixels
    along an edge, None where any will do."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return (mean, std), one number for each of `channels`.

        Raises:
            ConfigError: the weights are of images with another number of channels.
        """
        if len(self.mean) == 1:
            return self.mean * channels, self.std * channels
        if len(self.mean) != channels:
            raise ConfigError(
                f"Expected images of {len(self.mean)} channels, as the weights of the network "
                f"want, but got {channels}. Set data.mode=RGB where the data set has it."
            )
        return self.mean, self.std


def stated_form(where: str, mean: object, std: object, size: object) -> ImageForm | None:
    """Return the form that `mean`, `std` and `size` state; None where mean and std are None.

    where: what states it, for messages.

    Raises:
        ConfigError: not as many numbers in both, a std that is not above 0, a size that is no
            whole number.
    """
    if mean is None and std is None:
        return None
    numbers = [
        tuple(float(v) for v in value)
        if isinstance(value, Sequence) and all(isinstance(v, int | float) for v in value)
        else ()
        for value in (mean, std)
    ]
    sizes = size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0)
    if not numbers[0] or len(numbers[0]) != len(numbers[1]) or min(numbers[1]) <= 0 or not sizes:
        raise ConfigError(
            f"Expected `mean` and `std` of {where} to be lists of as many numbers, of images in "
            f"0..1 and each std above 0, and `size` a number of pixels, but got mean={mean!r}, "
            f"std={std!r}, size={size!r}."
        )
    return ImageForm(numbers[0], numbers[1], size if isinstance(size, int) else None)
