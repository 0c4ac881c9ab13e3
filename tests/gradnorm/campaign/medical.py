"""MONAI's networks, small, with random weights; none where MONAI is not installed."""

# ruff: noqa: E501  (tables, which read better whole)
from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from campaign.case import Case, first_tensor, readout, vectors

AVAILABLE = importlib.util.find_spec("monai") is not None

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "AHNet": None,  # twenty million weights
    "AttentionUnet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,)},
        (1, 8, 8),
    ),
    "AutoEncoder": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (2, 4), "strides": (2, 2)},
        (1, 8, 8),
    ),
    "BasicUNet": ({"spatial_dims": 2, "features": (4,) * 6}, (1, 32, 32)),
    "BasicUNetPlusPlus": ({"spatial_dims": 2, "features": (4,) * 6}, (1, 32, 32)),
    "BasicUnet": ({"spatial_dims": 3, "features": (2,) * 6}, (1, 32, 32, 32)),
    "Classifier": ({"in_shape": (1, 8, 8), "classes": 3, "channels": (2, 4), "strides": (2, 2)}, (1, 8, 8)),
    "Critic": ({"in_shape": (1, 8, 8), "channels": (2, 4), "strides": (2, 2)}, (1, 8, 8)),
    "DenseNet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "init_features": 4,
         "growth_rate": 2, "block_config": (2, 2)}, (1, 16, 16),
    ),
    "Discriminator": ({"in_shape": (1, 8, 8), "channels": (2, 4), "strides": (2, 2)}, (1, 8, 8)),
    "DynUNet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3],
         "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 4, 4]}, (1, 8, 8),
    ),
    "FlexibleUNet": None,  # several million weights
    "FullyConnectedNet": ({"in_channels": 4, "out_channels": 3, "hidden_channels": (8, 8)}, (4,)),
    "Generator": ({"latent_shape": (4,), "start_shape": (2, 4, 4), "channels": (4, 1), "strides": (2, 1)}, (4,)),
    "HighResNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, (1, 8, 8)),
    "Regressor": ({"in_shape": (1, 8, 8), "out_shape": (2,), "channels": (2, 4), "strides": (2, 2)}, (1, 8, 8)),
    "ResNet": (
        {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 4, 4], "spatial_dims": 2,
         "n_input_channels": 1, "num_classes": 3}, (1, 16, 16),
    ),
    "SegResNet": ({"spatial_dims": 2, "init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}, (1, 8, 8)),
    "SegResNetDS": ({"spatial_dims": 2, "init_filters": 4, "blocks_down": (1, 1)}, (1, 8, 8)),
    "SegResNetVAE": (
        {"input_image_size": (8, 8), "spatial_dims": 2, "init_filters": 8, "blocks_down": (1, 1),
         "blocks_up": (1,)}, (1, 8, 8),
    ),
    "UNETR": (
        {"in_channels": 1, "out_channels": 2, "img_size": (16, 16), "feature_size": 4, "hidden_size": 8,
         "mlp_dim": 16, "num_heads": 2, "spatial_dims": 2}, (1, 16, 16),
    ),
    "UNet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,),
         "num_res_units": 1}, (1, 8, 8),
    ),
    "VNet": None,  # tens of millions of weights
    "VarAutoEncoder": (
        {"spatial_dims": 2, "in_shape": (1, 8, 8), "out_channels": 1, "latent_size": 2,
         "channels": (2, 4), "strides": (2, 2)}, (1, 8, 8),
    ),
    "ViT": (
        {"in_channels": 1, "img_size": (8, 8), "patch_size": (4, 4), "hidden_size": 8, "mlp_dim": 16,
         "num_layers": 2, "num_heads": 2, "classification": True, "num_classes": 3,
         "spatial_dims": 2}, (1, 8, 8),
    ),
    "ViTAutoEnc": (
        {"in_channels": 1, "img_size": (16, 16), "patch_size": (4, 4), "hidden_size": 8, "mlp_dim": 16,
         "num_layers": 2, "num_heads": 2, "spatial_dims": 2}, (1, 16, 16),
    ),
    "SwinUNETR": (
        {"in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": (1, 1, 1, 1),
         "num_heads": (2, 2, 2, 2), "spatial_dims": 2}, (1, 32, 32),
    ),
    "DiNTS": None,  # needs a searched cell
    "TorchVisionFCModel": None,  # needs torchvision
    "SENet154": None,  # a hundred million weights
    "MILModel": None,  # needs torchvision
    "DiffusionModelUNet": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (4, 8),
         "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 2,
         "num_head_channels": 4}, (1, 8, 8),
    ),
    "AutoencoderKL": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (4, 4),
         "num_res_blocks": (1, 1), "attention_levels": (False, True), "latent_channels": 2,
         "norm_num_groups": 2}, (1, 8, 8),
    ),
    "PatchDiscriminator": (
        {"spatial_dims": 2, "channels": 4, "in_channels": 1, "num_layers_d": 2}, (1, 16, 16),
    ),
}  # fmt: skip


class Wrapped(nn.Module):
    """A network of this name; those that take a time step get one."""

    def __init__(self, name: str, options: dict[str, Any]):
        super().__init__()
        from monai.networks import nets

        self.net = getattr(nets, name)(**options)
        self.timed = name == "DiffusionModelUNet"
        for p in self.net.parameters():
            if not bool(p.any()):  # layers that start at zero hide what is behind them
                nn.init.normal_(p, std=0.2)

    def forward(self, x: Tensor) -> Any:
        return self.net(x, timesteps=torch.ones(len(x))) if self.timed else self.net(x)


def loss(outputs: Any, _: Any) -> Tensor:
    return readout(first_tensor(outputs))


def cases() -> list[Case]:
    """One case per network."""
    if not AVAILABLE:
        return []
    sizes = ((3, 3, 2), (2, 2, 3), (1, 4, 4))
    return [
        Case(name, "MONAI", functools.partial(Wrapped, name, entry[0]), vectors(*entry[1]), loss,
             sizes[k % 3], in_suite=False)
        for k, (name, entry) in enumerate(NETWORKS.items()) if entry is not None
    ]  # fmt: skip
