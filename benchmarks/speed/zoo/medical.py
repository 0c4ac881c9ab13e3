"""Networks of MONAI, small, with random weights."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import nn

from speed.zoo.entry import Entry, images


def build(name: str, **options: Any) -> nn.Module:
    """Return a network of MONAI without layers that are zero."""
    from monai.networks import nets

    model: nn.Module = getattr(nets, name)(**options)
    for parameter in model.parameters():
        if not bool(parameter.any()):  # layers that start at zero hide what is behind them
            nn.init.normal_(parameter, std=0.2)
    return model


def _entries() -> dict[str, Entry]:
    make, volume = functools.partial, torch.channels_last_3d
    sizes = {"in_channels": 1, "out_channels": 3}
    steps = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2}
    return {
        "segresnet-3d": Entry(
            make(build, "SegResNet", spatial_dims=3, init_filters=8, **sizes, norm="INSTANCE"),
            images(1, 32, 32, 32), 2, volume,
        ),
        "swin-unetr-2d": Entry(
            make(build, "SwinUNETR", **sizes, feature_size=12, spatial_dims=2),
            images(1, 64, 64), 4, torch.channels_last,
        ),
        "unet-2d": Entry(
            make(build, "UNet", spatial_dims=2, **sizes, **steps), images(1, 96, 96), 4,
            torch.channels_last,
        ),
        "unet-3d": Entry(
            make(build, "UNet", spatial_dims=3, **sizes, **steps), images(1, 32, 32, 32), 2,
            volume,
        ),
        "densenet121-2d": Entry(
            make(build, "DenseNet121", spatial_dims=2, in_channels=3, out_channels=10),
            images(3, 64, 64), 8, torch.channels_last,
        ),
        "densenet121-3d": Entry(
            make(build, "DenseNet121", spatial_dims=3, in_channels=1, out_channels=10),
            images(1, 32, 32, 32), 2, volume,
        ),
    }  # fmt: skip


ENTRIES = _entries() if importlib.util.find_spec("monai") is not None else {}
