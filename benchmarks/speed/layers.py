"""Networks of the benchmark that the package itself does not have, as small as they can be."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block3d(nn.Module):
    """Two 3x3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            conv = nn.Conv3d(inputs, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm3d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


def resnet18_3d(width: int, classes: int = 10) -> nn.Module:
    """ResNet-18 in three dimensions with a 3x3x3 stem; (n, 1, d, h, w) -> (n, classes)."""
    layers: list[nn.Module] = [nn.Conv3d(1, width, 3, padding=1, bias=False)]
    layers += [nn.BatchNorm3d(width), nn.ReLU()]
    inputs = width
    for stage in range(4):
        for block in range(2):
            outputs = width * 2**stage
            layers.append(Block3d(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(inputs, classes))


def dilated(classes: int = 8) -> nn.Module:
    """Dilated segmentation at full resolution; (n, 3, h, w) -> (n, classes, h, w)."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, dilation in ((16, 1), (16, 1), (32, 1), (32, 2), (64, 2), (64, 4), (64, 1)):
        conv = nn.Conv2d(inputs, width, 3, padding=dilation, dilation=dilation, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Conv2d(inputs, classes, 1))


def _encoder(dim: int, heads: int, depth: int, *, norm_first: bool) -> nn.Module:
    layer = [
        nn.TransformerEncoderLayer(
            dim,
            heads,
            4 * dim,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=norm_first,
        )
        for _ in range(depth)
    ]
    return nn.Sequential(*layer)


class VisionTransformer(nn.Module):
    """ViT-Ti (dimension 192, 3 heads, 12 layers) on patches of 4; (n, 3, 32, 32) -> (n, 10)."""

    def __init__(self, dim: int = 192, heads: int = 3, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, stride=4)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 65, dim))
        self.encoder = _encoder(dim, heads, depth, norm_first=True)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.encoder(tokens))[:, 0])
        return logits


class TextEncoder(nn.Module):
    """BERT-tiny (dimension 128, 2 heads, 2 layers, 30,522 words); (n, 128) words -> (n, 4)."""

    def __init__(self, words: int = 30_522, length: int = 128, dim: int = 128) -> None:
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.positions = nn.Embedding(length, dim)
        self.norm = nn.LayerNorm(dim)
        self.encoder = _encoder(dim, 2, 2, norm_first=False)
        self.pooler = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, words: Tensor) -> Tensor:
        # Repeated, not expanded: Opacus takes a view of them.
        places = torch.arange(words.shape[1], device=words.device).repeat(len(words), 1)
        x = self.norm(self.words(words) + self.positions(places))
        logits: Tensor = self.head(self.pooler(self.encoder(x)[:, 0]).tanh())
        return logits


class TextRecurrent(nn.Module):
    """An embedding, two recurrent layers of 128 and a head; (n, 64) words -> (n, 4)."""

    def __init__(self, layer: type[nn.LSTM | nn.GRU], words: int = 10_000, dim: int = 128) -> None:
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.layers = layer(dim, dim, num_layers=2, batch_first=True)
        self.head = nn.Linear(dim, 4)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.layers(self.words(words))
        logits: Tensor = self.head(states[:, -1])
        return logits
