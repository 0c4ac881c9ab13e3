"""Task models: one file a family, one line a name in `TABLE`, or a factory of the user's own.

    model = build("resnet18-cifar", num_classes=10, input_shape=(3, 32, 32))
    model = build("my_package.nets:make", num_classes=10, input_shape=(3, 32, 32), depth=4)

Ours name their stages, first to last, in `stages`: a tuple of submodule names, whose outputs
learning-loss reads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from upslope import tables
from upslope.errors import ConfigError
from upslope.models import bag_of_words, drn, resnet, resnet3d, small, text, vgg
from upslope.models.features import head, with_features
from upslope.models.text import SequenceClassifier

__all__ = [
    "TABLE",
    "SequenceClassifier",
    "build",
    "check_options",
    "describe",
    "head",
    "with_features",
]

TABLE: Mapping[str, Callable[..., nn.Module]] = {
    "resnet18-cifar": resnet.resnet18_cifar,
    "resnet50-cifar": resnet.resnet50_cifar,
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "vgg16": vgg.vgg16,
    "vgg16-bn": vgg.vgg16_bn,
    "resnet-small": resnet.resnet_small,
    "cnn-small": small.cnn_small,
    "mlp": small.mlp,
    "drn-d-22": drn.drn_d_22,
    "dilated-small": drn.dilated_small,
    "resnet18-3d": resnet3d.resnet18_3d,
    "resnet-small-3d": resnet3d.resnet_small_3d,
    "bag-of-words": bag_of_words.bag_of_words,
    "transformers": text.from_folder,
}
"""name -> factory, called as `factory(num_classes=..., input_shape=..., **options)`."""

_GIVEN = ("num_classes", "input_shape")


def build(name: str, *, num_classes: int, input_shape: Sequence[int], **options: Any) -> nn.Module:
    """A fresh network; its weights come from torch's global generator.

    name: a key of `TABLE`, or `package.module:function`, which is imported and called with
    num_classes, input_shape and the options.

    Raises:
        ConfigError: an unknown name or option, a factory that cannot be imported or called, or
            that returns something else than an nn.Module.
        ModelError: a network that cannot take inputs of that shape.
    """
    if ":" not in name:
        checked = check_options(name, options)
        factory = TABLE[name]
        return factory(num_classes=num_classes, input_shape=tuple(input_shape), **checked)
    factory = _import(name)
    try:
        model = factory(num_classes=num_classes, input_shape=tuple(input_shape), **options)
    except TypeError as error:
        raise ConfigError(
            f"Expected the model factory {name!r} to be callable with num_classes=, input_shape="
            f"{''.join(f', {key}=' for key in options)} but it raised: {error}."
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"Expected the model factory {name!r} to return a torch.nn.Module but got "
            f"{type(model).__name__}."
        )
    return model


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `build` with their types and ranges checked; builds nothing.

    Options of a factory of the user's own are theirs to check, and come back as they are.

    Raises:
        ConfigError: an unknown model; every unknown or wrong option, in one message.
    """
    if ":" in name:
        return dict(options)
    factory = tables.lookup("model", TABLE, name, " or `package.module:function`")
    return tables.check_options(f"model {name!r}", factory, options, _GIVEN)


def describe() -> list[tables.Description]:
    """Every model: its name, one line about it, and its options with defaults and help."""
    return [tables.describe(name, factory, _GIVEN) for name, factory in TABLE.items()]


def _import(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"Expected the model {name!r} to name an importable module but importing "
            f"{module_name!r} failed: {error}. Install it, or put its folder on PYTHONPATH."
        ) from error
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(factory):
        found = "nothing of that name" if factory is None else type(factory).__name__
        raise ConfigError(
            f"Expected {attribute!r} in {module_name!r} to be a function that returns a "
            f"torch.nn.Module but got {found}."
        )
    return factory
