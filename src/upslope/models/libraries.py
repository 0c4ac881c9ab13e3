"""Networks of timm and torchvision by their names there, `timm:NAME` and `torchvision:NAME`.

Nothing is downloaded: trained weights come from a file, `checkpoint`, that is read as weights only.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import nn

from upslope.checkpoints import read_weights
from upslope.errors import ConfigError, ModelError
from upslope.extras import import_package
from upslope.models.features import head
from upslope.models.inputs import ImageForm, stated_form

LIBRARIES = ("timm", "torchvision")

Checkpoint = Annotated[
    str | None,
    Field(description="file of trained weights, .safetensors or .pth; random ones without it"),
]


def is_library(name: str) -> bool:
    """Tell whether a model's name is that of a library, a colon and a name there."""
    library, colon, _ = name.partition(":")
    return bool(colon) and library in LIBRARIES


def options(checkpoint: Checkpoint = None) -> None:
    """State the options of these models, for the registry that checks them."""


def build_from_library(
    name: str, num_classes: int, input_shape: tuple[int, ...], checkpoint: str | None = None
) -> nn.Module:
    """Return the network of that name with a head for `num_classes`.

    checkpoint: weights of the same network, whose head may be for other classes: it is then new.

    Raises:
        ConfigError: a library that is not installed, or has no network of that name.
        ModelError: a checkpoint that cannot be read, or of another network.
    """
    library, _, architecture = name.partition(":")
    module = import_package(library, f"for the model {name!r}")
    try:
        if library == "timm":
            network = module.create_model(
                architecture, pretrained=False, num_classes=num_classes, in_chans=input_shape[0]
            )
        else:
            network = module.models.get_model(architecture, weights=None, num_classes=num_classes)
    except Exception as error:  # assertions too, for sizes that a network is not made for
        raise ConfigError(
            f"Expected {library} to have a network {architecture!r} for {num_classes} classes and "
            f"images of shape {input_shape} but: {error}."
        ) from error
    if checkpoint is not None:
        _load_below_head(network, checkpoint)
    network_built: nn.Module = network
    return network_built


def image_form(name: str, checkpoint: str | None) -> ImageForm | None:
    """Return the form that the published weights of a network want; None for random weights.

    Raises:
        ConfigError: a library that is not installed.
    """
    if checkpoint is None:
        return None
    library, _, architecture = name.partition(":")
    module = import_package(library, f"for the model {name!r}")
    if library == "timm":
        pretrained_config: Any = module.get_pretrained_cfg(architecture)
        size = pretrained_config.input_size[-1] if pretrained_config else None
        return (
            stated_form(name, list(pretrained_config.mean), list(pretrained_config.std), size)
            if pretrained_config
            else None
        )
    try:
        transforms = module.models.get_model_weights(architecture).DEFAULT.transforms()
    except ValueError:  # a name that it does not know, which building the network tells
        return None
    # Those of networks for masks crop nothing, and those for boxes normalise nothing.
    mean, std, crop = (getattr(transforms, key, None) for key in ("mean", "std", "crop_size"))
    if mean is None or std is None:
        return None
    return stated_form(name, list(mean), list(std), crop[0] if crop else None)


def _load_below_head(network: nn.Module, checkpoint: str) -> None:
    """Load weights; a head of another shape keeps the new ones."""
    layer, file_weights = head(network), read_weights(checkpoint)
    name = next(n for n, module in network.named_modules() if module is layer)
    own_weights = network.state_dict()
    of_head = [key for key in own_weights if key.startswith(f"{name}.")]
    if any(
        key not in file_weights or file_weights[key].shape != own_weights[key].shape
        for key in of_head
    ):
        file_weights = {**file_weights, **{key: own_weights[key] for key in of_head}}
    wrong = [
        k
        for k in own_weights.keys() | file_weights.keys()
        if k not in own_weights or k not in file_weights
    ]
    wrong += [
        k
        for k in own_weights.keys() & file_weights.keys()
        if own_weights[k].shape != file_weights[k].shape
    ]
    if wrong:
        raise ModelError(
            f"Expected {checkpoint} to hold the weights of {type(network).__name__} but "
            f"{len(wrong)} are missing, unexpected or of another shape: "
            f"{', '.join(sorted(wrong)[:5])}. Give the checkpoint of this network."
        )
    network.load_state_dict(file_weights)
