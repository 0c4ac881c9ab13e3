"""Task models: one file per family, one line per name in `REGISTRY`, or a factory of the user's.

    model = build("resnet18-cifar", num_classes=10, input_shape=(3, 32, 32))
    model = build("my_package.nets:make", num_classes=10, input_shape=(3, 32, 32), depth=4)

Ours name their stages, first to last, in `stages`: a tuple of submodule names, whose outputs
learning-loss reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from upslope import registry
from upslope.errors import ConfigError
from upslope.models import (
    bag_of_words,
    drn,
    efficientnet,
    efficientnet_masks,
    fast,
    hugging_face,
    image_processor,
    libraries,
    own,
    resnet,
    resnet3d,
    small,
    vgg,
)
from upslope.models.features import head, with_features
from upslope.models.hugging_face import head_classes
from upslope.models.inputs import ImageForm
from upslope.models.lazy import initialise_by_shape, without_lazy_layers
from upslope.models.text import SequenceClassifier

__all__ = [
    "REGISTRY",
    "ImageForm",
    "SequenceClassifier",
    "build",
    "check_options",
    "describe",
    "head",
    "head_classes",
    "image_form",
    "with_features",
    "without_lazy_layers",
]

REGISTRY: Mapping[str, Callable[..., nn.Module]] = {
    "resnet18-cifar": resnet.resnet18_cifar,
    "resnet50-cifar": resnet.resnet50_cifar,
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "vgg16": vgg.vgg16,
    "vgg16-bn": vgg.vgg16_bn,
    "resnet-small": resnet.resnet_small,
    "cnn-fast": fast.cnn_fast,
    "cnn-small": small.cnn_small,
    "mlp": small.mlp,
    "drn-d-22": drn.drn_d_22,
    "dilated-small": drn.dilated_small,
    "resnet18-3d": resnet3d.resnet18_3d,
    "resnet-small-3d": resnet3d.resnet_small_3d,
    "bag-of-words": bag_of_words.bag_of_words,
    "pretrained": efficientnet.pretrained,
    "pretrained-masks": efficientnet_masks.pretrained_masks,
    "transformers": hugging_face.from_folder,
}
"""name -> factory, called as `factory(num_classes=..., input_shape=..., **options)`."""


def build(name: str, *, num_classes: int, input_shape: Sequence[int], **options: Any) -> nn.Module:
    """Return a fresh network; its weights come from torch's global generator.

    name: a key of `REGISTRY`; `timm:NAME` or `torchvision:NAME`, a network of these libraries,
    where they are installed; or `package.module:function`, which is imported, from the current
    folder too, and called with num_classes, input_shape and the options. Lazy layers get their
    sizes from a batch of zeros.

    Raises:
        ConfigError: an unknown name or option, sizes that are no whole numbers, a factory that
            cannot be imported or called, or that returns something else than an nn.Module.
        ModelError: a network that cannot take inputs of that shape, or whose lazy layers stay open.

    Example:
        >>> import torch
        >>> model = build("cnn-small", num_classes=10, input_shape=(1, 8, 8), width=4)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    num_classes = registry.whole_number(num_classes, "num_classes")
    try:
        sizes = tuple(input_shape)
    except TypeError as error:
        raise ConfigError(
            f"Expected `input_shape` to be a list of sizes but got {input_shape!r}."
        ) from error
    shape = tuple(registry.whole_number(size, "input_shape") for size in sizes)
    if libraries.is_library(name):
        valid_options = check_options(name, options)
        return libraries.build_from_library(name, num_classes, shape, **valid_options)
    if ":" in name:
        return initialise_by_shape(own.build_own(name, num_classes, shape, options), shape)
    valid_options = check_options(name, options)
    return REGISTRY[name](num_classes=num_classes, input_shape=shape, **valid_options)


def image_form(name: str, options: Mapping[str, Any]) -> ImageForm | None:
    """Return the form that a network's trained weights want images in; None where it wants none.

    Of a function of the user's own, its attributes `mean` and `std`, numbers per channel of images
    in 0..1, and `size`, pixels along an edge, say so.

    name, options: as of `build`.

    Raises:
        ConfigError: a function that cannot be imported, or attributes that are no such numbers.
    """
    if name == "pretrained" and options.get("weights", True):
        return ImageForm((efficientnet.MEAN,), (efficientnet.STD,), efficientnet.SIZE)
    if name == "pretrained-masks" and options.get("weights", True):
        return ImageForm((efficientnet.MEAN,), (efficientnet.STD,))
    if name == "transformers" and options.get("weights", True):
        return image_processor.image_form(str(options.get("path", "")))
    if libraries.is_library(name):
        return libraries.image_form(name, options.get("checkpoint"))
    return own.image_form(name) if ":" in name else None


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `build` with their names, types and ranges checked; builds nothing.

    Of a function of the user's own, which is imported for it, the names alone are checked.

    name, options: as of `build`.

    Raises:
        ConfigError: an unknown model; every unknown or wrong option, in one message.
    """
    factory: Callable[..., Any]
    if libraries.is_library(name):
        factory = libraries.options
    elif ":" in name:
        return own.check_own_options(name, options)
    else:
        factory = registry.lookup("model", REGISTRY, name, " or `package.module:function`")
    problems: list[registry.OptionProblem] = [*own.given_problems(name, options)]
    rest = {key: value for key, value in options.items() if key not in own.DATA_ARGUMENTS}
    try:
        valid_options = registry.check_options(f"model {name!r}", factory, rest, own.DATA_ARGUMENTS)
    except registry.OptionsError as error:
        problems += error.problems
    if problems:
        raise registry.OptionsError(problems)
    return valid_options


def describe() -> list[registry.Description]:
    """Return every model: its name, one line about it, and its options with defaults and help."""
    return [
        registry.describe(name, factory, own.DATA_ARGUMENTS) for name, factory in REGISTRY.items()
    ]
