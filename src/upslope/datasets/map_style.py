"""Data sets of torch and their like: samples by position, `len(data)` of them.

    splits = Splits.from_torch(train_set, test_set)

Any object with `__len__` and `__getitem__` will do: a `torch.utils.data.Dataset`, one of
torchvision, a `datasets.Dataset` of Hugging Face, a list. An item is an input alone, a tuple
(input, target), or a mapping; an input is an image of Pillow, an array or a tensor.

Items must be the same at each reading: a run scores and trains on what it reads, and is resumed by
reading again. So the first items are read twice, and random transforms are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from upslope.datasets.array_form import Layout, channels_first
from upslope.datasets.arrays import UNKNOWN, Array, Labels, finite_floats, warn_of_lost_digits
from upslope.errors import ConfigError, DataError
from upslope.images import Form, Mode, natural_mode, pixels_of, refuse_pages
from upslope.memory import raise_memory_error
from upslope.reading import reporting_damage

INPUT_KEYS = ("image", "images", "img", "pixel_values", "input", "inputs", "x", "features")
TARGET_KEYS = ("label", "labels", "target", "targets", "y", "class", "mask")
Key = str | int | None

_READ_TWICE = 8  # a transform that flips half of all images is noticed but for one time in 256
_LOOKED_AT = 20  # items in double precision, by which the loss in single precision is told
_UNREADABLE = (OSError, ValueError, TypeError, RuntimeError, KeyError, IndexError)


@dataclass(frozen=True)
class ItemKeys:
    """Where an item has its input and its target: a position of a tuple, a key of a mapping; the
    input is the item itself, and there is no target, where None."""

    input: Key
    target: Key


@dataclass(frozen=True)
class InputForm:
    """The form that inputs are brought to: of images of Pillow, and where arrays have their
    channels. mode_given: a caller has asked for the mode, so that colour may be lost."""

    image: Form
    layout: Layout = "auto"
    mode_given: bool = False


@dataclass(frozen=True, eq=False)
class MapStyleDataset:
    """Samples read from a map-style data set when they are asked for.

    items: the data set. values: (n, ...) targets, as `target_values` reads them, `UNKNOWN` or NaN
    where nobody knows; None where they are read with each item, as masks are. form: that inputs are
    brought to. input_shape, input_type: of one input, which all must have.
    """

    name: str
    ids: Sequence[str]
    classes: tuple[str, ...]
    items: Any
    keys: ItemKeys
    form: InputForm
    input_shape: tuple[int, ...]
    input_type: np.dtype[Any]
    values: Array | None
    resident: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> Labels:
        """Return (n,): the class, or 0 where the target is of another kind; `UNKNOWN` without
        one.
        """
        if self.values is None:
            return np.zeros(len(self), dtype=np.int64)
        if self.values.ndim == 1:
            return np.asarray(self.values, dtype=np.int64)
        floats = self.values.dtype.kind == "f"
        missing = np.isnan(self.values) if floats else self.values == UNKNOWN
        return np.where(missing.any(axis=1), UNKNOWN, 0).astype(np.int64)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        """Return (n, *input_shape). Raises DataError naming the item that cannot be used."""
        return torch.from_numpy(np.stack([self.input(int(i)) for i in indices]))

    def input(self, position: int) -> Array:
        """Return the input of one sample: uint8 or float32, channels in front."""
        where = f"{self.name} ({self.ids[position]})"
        value = part_of(read_item(self.items, position, where), self.keys.input, where)
        array = input_of(value, self.form, where)
        check_alike(array, self.input_shape, self.input_type, where)
        return array

    def targets(self, indices: Sequence[int]) -> Tensor:
        """Return (n, ...). Raises DataError for a sample without a target."""
        positions = np.asarray(indices, dtype=np.int64)
        missing = positions[self.labels[positions] == UNKNOWN]
        if len(missing):
            raise DataError(
                f"Expected a target for {self.ids[missing[0]]!r} but the data set has none "
                f"({len(missing)} of {len(positions)} asked for). An annotator must give it."
            )
        if self.values is not None:
            return torch.from_numpy(self.values[positions])
        return torch.from_numpy(np.stack([self.mask(int(i)) for i in indices]))

    def mask(self, position: int) -> Array:
        """Return the mask of one sample: (h, w) uint8, 255 where ignored."""
        where = f"{self.name} ({self.ids[position]})"
        value = part_of(read_item(self.items, position, where), self.keys.target, where)
        mask = np.asarray(value.cpu() if isinstance(value, Tensor) else value)
        shape = self.input_shape[1:]
        classes = mask[mask != 255] if mask.dtype.kind in "iu" else mask
        if (
            mask.dtype.kind not in "iu"
            or mask.shape != shape
            or (len(classes) and not 0 <= classes.min() <= classes.max() < len(self.classes))
        ):
            raise DataError(
                f"Expected the mask of {where} to hold classes from 0 to {len(self.classes) - 1}, "
                f"or 255 for pixels that count nowhere, in shape {shape} but got {mask.dtype} "
                f"of shape {mask.shape}. Bring it to that in the data set."
            )
        return mask.astype(np.uint8)


def check_alike(array: Array, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Raise DataError unless an input has the shape and the type of the first one.

    uint8 is standardised where floats are taken as they are, and a batch of both would be floats.
    """
    if array.shape != shape:
        raise DataError(
            f"Expected the input of {where} to be of shape {shape}, as the first one, but got "
            f"{array.shape}. Set `size` to bring images of Pillow to one size; bring arrays and "
            "tensors to one in the data set."
        )
    if array.dtype != dtype:
        raise DataError(
            f"Expected the input of {where} to be of {dtype}, as the first one, but got "
            f"{array.dtype}. Bring all to one type in the data set."
        )


def check_map_style(items: Any, what: str) -> int:
    """Return the number of items.

    Raises:
        ConfigError: no map-style data set: a loader, an iterable one, one without a length.
    """
    kind = type(items).__name__
    if isinstance(items, torch.utils.data.DataLoader):
        raise ConfigError(
            f"Expected a data set as {what} but got a DataLoader, whose batches have no fixed "
            "places. Give its data set: loader.dataset."
        )
    if isinstance(items, torch.utils.data.IterableDataset) or not hasattr(items, "__getitem__"):
        raise ConfigError(
            f"Expected {what} to give samples by position, data[i], but {kind} does not: it can "
            "only be gone through, and chosen samples could not be found again. Read it into a "
            "list, or into arrays for Splits.from_arrays."
        )
    try:
        size = len(items)
    except (TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"Expected {what} to have a length, len(data), but {kind} has none ({error}). Give it "
            "`__len__`, or read it into a list."
        ) from error
    if not size:
        raise DataError(f"Expected at least one sample in {what} but it is empty.")
    return size


def item_keys(item: Any, input: Key, target: Key, where: str) -> ItemKeys:
    """Return where items have input and target: as given, or by the usual names and places.

    Raises:
        ConfigError: a mapping without one of the usual keys, or with several; a longer tuple.
    """
    if isinstance(item, Mapping):
        if input is None:
            input = _one_of(item, INPUT_KEYS, "input", where)
        if target is None:
            target = _one_of(item, TARGET_KEYS, "target", where, optional=True)
        return ItemKeys(input, target)
    if isinstance(item, tuple | list):
        if len(item) > 2 and (input is None or target is None):
            raise ConfigError(
                f"Expected items (input, target) in {where} but got tuples of {len(item)}. Say "
                "which are which: input=0, target=1."
            )
        at = 0 if input is None else input
        return ItemKeys(at, (1 if len(item) > 1 else None) if target is None else target)
    if input is not None or target is not None:
        raise ConfigError(
            f"Expected items of {where} to be tuples or mappings, as `input` and `target` name "
            f"parts of them, but got {type(item).__name__}."
        )
    return ItemKeys(None, None)


def _one_of(
    item: Mapping[Any, Any], usual: Sequence[str], what: str, where: str, *, optional: bool = False
) -> str | None:
    there = [key for key in usual if key in item]
    if len(there) == 1 or (optional and not there):
        return there[0] if there else None
    raise ConfigError(
        f"Expected one key of {', '.join(usual)} in the items of {where} but they have "
        f"{', '.join(map(repr, item))}. Name it: {what}='...'."
    )


def part_of(item: Any, key: Key, where: str) -> Any:
    """Return a part of an item; the item itself for None. Raises DataError where it has none."""
    if key is None:
        return item
    try:
        return item[key]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"Expected the item of {where} to have {key!r}, as the first one, but got "
            f"{type(item).__name__}: {error}."
        ) from error


def read_item(items: Any, position: int, where: str) -> Any:
    """Return an item. Raises DataError, naming it, where the data set raises what files raise."""
    try:
        return items[position]
    except _UNREADABLE as error:
        raise_memory_error(error)
        raise DataError(
            f"Expected to read {where} but the data set raised {type(error).__name__}: {error}."
        ) from error


def target_of(item: Any, key: Key, where: str) -> Any:
    """Return the target of an item in plain values; None where it has none."""
    value = None if key is None else part_of(item, key, where)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def form_of_item(
    value: Any, layout: Layout, mode: Mode | None, size: int | None, white: int | None
) -> InputForm:
    """Return the form that inputs are brought to: as given, or as the first one is.

    Raises:
        ConfigError: a size or mode for items that are no images of Pillow.
    """
    if isinstance(value, Image.Image):
        image_mode = mode or natural_mode(value.mode)
        return InputForm(
            Form(image_mode, (size, size) if size else None, white), layout, mode is not None
        )
    if mode is not None or size is not None or white is not None:
        raise ConfigError(
            "Expected `size`, `mode` and `white` for images of Pillow alone but the items hold "
            f"{type(value).__name__}. Bring arrays and tensors to one size in the data set."
        )
    return InputForm(Form("RGB", None), layout)


def input_of(value: Any, form: InputForm, where: str) -> Array:
    """Return one input as uint8 or float32, channels in front.

    Raises:
        DataError: text, whole numbers that are not uint8, NaN or infinity; an image that cannot
            be brought to the form, or that is of colour where the first is grey.
        ConfigError: channels of an array that may be at either end.
    """
    if isinstance(value, Image.Image):
        return _pixels(value, form, where)
    array, layout = _array_of(value, where), form.layout
    if isinstance(value, Tensor) and layout == "auto" and value.ndim > 2:
        layout = "channels-first"
    if array.ndim == 0 or array.dtype.kind not in "uif":
        raise DataError(
            f"Expected the input of {where} to be an array of numbers but got {array.dtype} of "
            f"shape {array.shape}."
        )
    array = channels_first(array[None], layout, where)
    floats: Array = array if array.dtype == np.uint8 else finite_floats(array, where)
    sample: Array = floats[0]
    return sample


def _array_of(value: Any, where: str) -> Array:
    """Return an input that is no image of Pillow, in the type that it has."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        tensor: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return tensor
    if isinstance(value, np.ndarray | list | tuple | np.generic | float):
        return np.asarray(value)
    raise DataError(
        f"Expected the input of {where} to be an image of Pillow, an array or a tensor but "
        f"got {type(value).__name__}. Texts and rows of a table are for Splits.from_table."
    )


def warn_of_doubles(items: Any, size: int, key: Key, what: str) -> None:
    """Warn where single precision moves inputs in double precision, as arrays are warned of.

    Some of the items are looked at. items: the data set, of `size` samples. key: where an item has
    its input. what: the data set is, for the message.
    """

    def read(position: int) -> Any:
        return part_of(read_item(items, position, what), key, what)

    first = read(0)
    if isinstance(first, Image.Image) or _array_of(first, what).dtype != np.float64:
        return
    positions = np.unique(np.linspace(0, size - 1, _LOOKED_AT).astype(int)).tolist()
    arrays = [_array_of(read(position), what) for position in positions]
    if len({array.shape for array in arrays}) == 1:  # others are refused when all are read
        warn_of_lost_digits(np.stack(arrays), what)


def _pixels(image: Image.Image, form: InputForm, where: str) -> Array:
    if not form.mode_given and natural_mode(image.mode) == "RGB" and form.image.mode == "L":
        raise DataError(
            f"Expected {where} to be grey, as the first image, but it is of mode {image.mode}. Set "
            "`mode` to RGB, or to L where colour is to be left out."
        )
    with reporting_damage(f"an image in {where}", "Repair or remove it.", "it cannot be decoded"):
        refuse_pages(image)
        return pixels_of(image, form.image)


def check_repeats(read: Callable[[int], Array], size: int, what: str) -> None:
    """Read a few samples twice.

    Raises:
        DataError: the second reading gave something else.
    """
    with torch.random.fork_rng(devices=[]):
        for position in np.unique(np.linspace(0, size - 1, _READ_TWICE).astype(int)).tolist():
            first, second = read(position), read(position)
            if first.shape != second.shape or not np.array_equal(first, second):
                raise DataError(
                    f"Expected {what} to give the same sample at each reading but its item "
                    f"{position} differed: it has a random transform. Give the data set without "
                    "it; the task's option `augmentation` varies images in training alone."
                )
