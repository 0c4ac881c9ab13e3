"""Recurrences that are written out, step by step, as tutorials and papers have them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from speed.zoo.entry import Entry, images


class Recurrence(nn.Module):
    """A hidden state that starts at zero; (n, steps, inputs) -> (n, classes)."""

    def __init__(self, inputs: int = 16, width: int = 128, classes: int = 10):
        super().__init__()
        self.width = width
        self.step = nn.Linear(inputs + width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.size(0), self.width)
        for t in range(x.size(1)):
            hidden = torch.tanh(self.step(torch.cat((x[:, t], hidden), 1)))
        out: Tensor = self.head(hidden)
        return out


class ConvLSTM(nn.Module):
    """Two convolutional LSTM cells over frames; (n, steps, channels, h, w) -> (n, classes)."""

    def __init__(self, channels: int = 1, width: int = 16, classes: int = 10):
        super().__init__()
        self.width = width
        inputs = (channels + width, 2 * width)
        self.cells = nn.ModuleList(nn.Conv2d(i, 4 * width, 3, padding=1) for i in inputs)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        n, steps, _, h, w = x.shape
        frames = [x[:, t] for t in range(steps)]
        for cell in self.cells:
            hidden, memory = torch.zeros(2, n, self.width, h, w)
            outputs = []
            for frame in frames:
                gates = cell(torch.cat([frame, hidden], dim=1))
                i, f, o, g = torch.split(gates, self.width, dim=1)
                memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
                hidden = torch.sigmoid(o) * torch.tanh(memory)
                outputs.append(hidden)
            frames = outputs
        out: Tensor = self.head(frames[-1].mean(dim=(2, 3)))
        return out


class DPRNN(nn.Module):
    """Dual-path recurrence over chunks; (n, channels, chunks, steps) -> (n, classes)."""

    def __init__(self, channels: int = 32, width: int = 32, classes: int = 4, blocks: int = 2):
        super().__init__()
        self.within, self.across = (
            nn.ModuleList(
                nn.LSTM(channels, width, batch_first=True, bidirectional=True)
                for _ in range(blocks)
            )
            for _ in range(2)
        )
        self.back = nn.ModuleList(nn.Linear(2 * width, channels) for _ in range(2 * blocks))
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for _ in range(2 * blocks))
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        n, c, chunks, steps = x.shape
        for k, (within, across) in enumerate(zip(self.within, self.across, strict=True)):
            rows = x.permute(0, 2, 3, 1).reshape(n * chunks, steps, c)
            rows = self.back[2 * k](within(rows)[0])
            x = x + self.norms[2 * k](rows.view(n, chunks, steps, c).permute(0, 3, 1, 2))
            rows = x.permute(0, 3, 2, 1).reshape(n * steps, chunks, c)
            rows = self.back[2 * k + 1](across(rows)[0])
            x = x + self.norms[2 * k + 1](rows.view(n, steps, chunks, c).permute(0, 3, 2, 1))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class FixedPoint(nn.Module):
    """A fixed point, unrolled from zero; (n, inputs) -> (n, classes)."""

    def __init__(self, inputs: int = 64, width: int = 256, classes: int = 10):
        super().__init__()
        self.given, self.step = nn.Linear(inputs, width), nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        u = self.given(x)
        z = torch.zeros(len(x), u.shape[1]).to(x)
        for _ in range(10):
            z = torch.tanh(self.step(z) + u)
        out: Tensor = self.head(z)
        return out


class TCN(nn.Module):
    """Dilated causal convolutions with weight normalisation; (n, channels, length)."""

    def __init__(self, channels: int = 8, width: int = 64, classes: int = 10):
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        self.convs, self.shortcuts = nn.ModuleList(), nn.ModuleList()
        for k in range(4):
            inputs = width if k else channels
            self.convs.append(norm(nn.Conv1d(inputs, width, 3, dilation=2**k)))
            self.convs.append(norm(nn.Conv1d(width, width, 3, dilation=2**k)))
            self.shortcuts.append(nn.Identity() if k else nn.Conv1d(inputs, width, 1))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for k, shortcut in enumerate(self.shortcuts):
            y = x
            for conv in self.convs[2 * k : 2 * k + 2]:
                y = torch.relu(conv(nn.functional.pad(y, (2 * 2**k, 0))))
            x = torch.relu(y + shortcut(x))
        out: Tensor = self.head(x[:, :, -1])
        return out


ENTRIES = {
    "recurrence": Entry(Recurrence, images(32, 16), 32),
    "conv-lstm": Entry(ConvLSTM, images(6, 1, 24, 24), 8),
    "dprnn": Entry(DPRNN, images(32, 12, 20), 4),
    "fixed-point": Entry(FixedPoint, images(64), 64),
    "tcn": Entry(functools.partial(TCN), images(8, 128), 16),
}
