"""Networks on points, tables, bags of words and rows, and convolutional ones written by hand."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from speed.zoo.entry import Entry, images


class PointNet(nn.Module):
    """Shared layers over points, and a maximum; (n, 3, points) -> (n, classes)."""

    def __init__(self, classes: int = 10):
        super().__init__()
        widths = (3, 64, 128, 512)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()]
        self.points = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.points(x).max(dim=2).values)
        return out


class WideBlock(nn.Module):
    """Normalisation and rectifier before each convolution, as in wide residual networks."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == width
        self.shortcut = None if same else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        left = x if self.shortcut is None else self.shortcut(y)
        out: Tensor = left + self.conv2(F.relu(self.bn2(self.conv1(y))))
        return out


def wide_resnet(classes: int = 10) -> nn.Module:
    """WRN-16-4; (n, 3, 32, 32) -> (n, classes)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    inputs = 16
    for stage, width in enumerate((64, 128, 256)):
        for block in range(2):
            layers.append(WideBlock(inputs, width, 2 if stage and not block else 1))
            inputs = width
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


class CrossCovariance(nn.Module):
    """EdgeNeXt's split depth-wise convolutions, then attention between channels."""

    def __init__(self, dim: int, parts: int = 3, heads: int = 4):
        super().__init__()
        self.heads, self.width = heads, dim // parts
        self.convs = nn.ModuleList(
            nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.width)
            for _ in range(parts - 1)
        )
        self.positions = nn.Conv2d(32, dim, 1)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.gamma = nn.Parameter(0.1 * torch.ones(dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts, last = list(x.split(self.width, dim=1)), torch.zeros(())
        for k, conv in enumerate(self.convs):
            parts[k] = last = conv(parts[k] + last)
        y = torch.cat(parts, dim=1).flatten(2).transpose(1, 2)
        y = y + self.positions(self.encode(n, h, w).to(x)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(y)).view(n, h * w, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        mixed = (scores * self.temperature).softmax(dim=-1) @ v
        y = y + self.gamma * self.out(mixed.permute(0, 3, 1, 2).reshape(n, h * w, c))
        y = self.mlp(self.norm2(y))
        return x + y.transpose(1, 2).reshape(n, c, h, w)

    @staticmethod
    def encode(n: int, h: int, w: int) -> Tensor:
        """Return sines of both coordinates, (n, 32, h, w): the same for each sample."""
        ones = torch.ones(n, h, w)
        scale = 10000.0 ** (torch.arange(8) / 8)
        waves = [
            f(ones.cumsum(dim)[:, None] / scale.view(1, -1, 1, 1))
            for dim in (1, 2) for f in (torch.sin, torch.cos)
        ]  # fmt: skip
        return torch.cat(waves, dim=1)


def edgenext(classes: int = 10) -> nn.Module:
    """A stem, depth-wise and cross-covariance blocks as of EdgeNeXt; (n, 3, 64, 64)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 48, 4, stride=4)]
    for a, b in ((48, 96), (96, 168)):
        layers += [nn.Conv2d(a, b, 2, stride=2), CrossCovariance(b), CrossCovariance(b)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(168, classes))


class TabularEmbeddings(nn.Module):
    """A token for each number and each category of a row, as FT-Transformer; (n, 16) numbers."""

    def __init__(self, columns: int = 16, categories: int = 8, dim: int = 64, classes: int = 4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(columns, dim) / dim**0.5)
        self.bias = nn.Parameter(torch.randn(columns, dim) / dim**0.5)
        self.tables = nn.ModuleList(nn.Embedding(32, dim) for _ in range(categories))
        self.cls = nn.Parameter(torch.randn(dim) / dim**0.5)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(dim, classes)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        tokens = numbers[:, :, None] * self.weight + self.bias
        words = torch.stack([e(categories[:, k]) for k, e in enumerate(self.tables)], dim=1)
        cls = torch.stack([self.cls] * len(numbers))[:, None]
        out: Tensor = self.head(self.encoder(torch.cat([cls, tokens, words], dim=1))[:, 0])
        return out


def _draw_table(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 16), torch.randint(32, (n, 8))


class EntityEmbeddings(nn.Module):
    """A small table per category, joined with numbers, and layers; the usual tabular network."""

    def __init__(self, categories: int = 8, classes: int = 4):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(50, 12) for _ in range(categories))
        self.norm = nn.BatchNorm1d(16)
        self.layers = nn.Sequential(
            nn.Linear(16 + 12 * categories, 200), nn.ReLU(), nn.BatchNorm1d(200),
            nn.Linear(200, 100), nn.ReLU(), nn.BatchNorm1d(100), nn.Linear(100, classes),
        )  # fmt: skip

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        words = [table(categories[:, k]) for k, table in enumerate(self.tables)]
        out: Tensor = self.layers(torch.cat([*words, self.norm(numbers)], dim=1))
        return out


class Bags(nn.Module):
    """Text classification of PyTorch's tutorial: bags of words given by offsets."""

    def __init__(self, words: int = 20_000, dim: int = 64, classes: int = 4):
        super().__init__()
        self.bags = nn.EmbeddingBag(words, dim, sparse=False)
        self.layers = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, classes))

    def forward(self, words: Tensor) -> Tensor:
        n, length = words.shape
        out: Tensor = self.layers(self.bags(words.flatten(), torch.arange(n) * length))
        return out


class Rows(nn.Module):
    """A function of one row, mapped over the batch by `torch.func.vmap`."""

    def __init__(self, inputs: int = 128, width: int = 256, classes: int = 10):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = vmap(self.layers)(x)
        return out


ENTRIES = {
    "pointnet": Entry(PointNet, images(3, 512), 16),
    "wrn-16-4": Entry(wide_resnet, images(3, 32, 32), 8, torch.channels_last),
    "edgenext": Entry(edgenext, images(3, 64, 64), 8, torch.channels_last),
    "tabular-tokens": Entry(TabularEmbeddings, _draw_table, 64),
    "tabular-embeddings": Entry(EntityEmbeddings, _draw_table, 256),
    "embedding-bag": Entry(Bags, lambda n: torch.randint(20_000, (n, 60)), 64),
    "vmap": Entry(Rows, images(128), 128),
}
