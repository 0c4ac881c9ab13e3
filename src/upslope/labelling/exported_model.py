"""The model of a project as a file: safetensors, or ONNX that goes from pixels to probabilities.

NAME.safetensors    weight (k, d), bias (k,), mean and deviation (d,) of the features; classes,
                    kind, features, labels and perhaps white as metadata (`model_file`)
NAME.onnx           inputs `pixels_64` and, with the network, `pixels_128`: (n, 3, side, side)
                    uint8, RGB, the centre of the image cropped to a square and scaled; output
                    `probabilities`: (n, k); metadata as above
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.checkpoints import write_safetensors
from upslope.errors import ConfigError, DataError
from upslope.extras import missing_package
from upslope.files import write_atomically
from upslope.labelling.extraction import SampleFeatures, extractors, take_features
from upslope.labelling.features import CELL, DIRECTIONS, GRID, NETWORK_SIDE, SIDE
from upslope.labelling.learner import Learner
from upslope.labelling.project import read_project
from upslope.labelling.queue import Queue
from upslope.labelling.samples import samples_of

SUFFIXES = (".safetensors", ".onnx")


@dataclass(frozen=True)
class ModelCount:
    """labels: how many the model was trained on. method: what its features are."""

    labels: int
    method: str


def export_model(project: Path | str, path: Path) -> ModelCount:
    """Train on all labels and write the model, whole or not at all.

    project: its folder. path: of the file, .safetensors or .onnx.

    Raises:
        ConfigError: another suffix, no images for ONNX, or its packages are not installed.
        DataError: fewer than two classes with a label.
        RunError: no project, or a disk that is full.
    """
    settings, state = read_project(project)
    samples = samples_of(settings)
    if path.suffix.lower() == ".onnx":
        _check_onnx(samples.kind)
    *_, features = take_features(Path(project), samples)
    queue = Queue(samples.ids, settings)
    learner = Learner(settings, samples.ids, queue, features.values, features.method)
    linear_model = learner.final_model(state)
    if linear_model is None:
        raise DataError(
            "Expected labels of two classes or more outside the control slice, to learn from, but "
            "there are none yet. Label some: upslope label serve."
        )
    head, labels = linear_model
    about = {
        "classes": json.dumps(list(settings.classes)),
        "kind": settings.kind,
        "features": features.method,
        "labels": str(labels),
    }
    if settings.reading.white is not None:
        about["white"] = str(settings.reading.white)
    if path.suffix.lower() == ".onnx":
        write_atomically(path, lambda file: _write_onnx(file, head, features, settings.kind, about))
    elif path.suffix.lower() == ".safetensors":
        tensors = {
            "weight": head.weight.detach(), "bias": head.bias.detach(),
            "mean": torch.from_numpy(features.mean.copy()),
            "deviation": torch.from_numpy(features.deviation.copy()),
        }  # fmt: skip
        write_atomically(path, lambda file: write_safetensors(file, tensors, about))
    else:
        raise ConfigError(f"Expected a model file {' or '.join(SUFFIXES)} but got {path}.")
    return ModelCount(labels, features.method)


class ImageStatistics(nn.Module):
    """`features.image_statistics` in operators that ONNX has. (n, 3, SIDE, SIDE) of 0 to 1 to
    (n, d)."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the histograms of directions and the colours of each image."""
        grey = images.mean(dim=1)
        dy, dx = _differences(grey, 1), _differences(grey, 2)
        magnitude = torch.sqrt(dx * dx + dy * dy)
        angle = torch.atan2(dy, dx)
        angle = torch.where(angle < 0, angle + math.pi, angle) * (DIRECTIONS / math.pi)
        bins = torch.arange(DIRECTIONS, dtype=images.dtype).reshape(1, -1, 1, 1)
        apart = (angle[:, None] - bins).abs()
        apart = torch.minimum(apart, DIRECTIONS - apart)  # directions go round
        votes = magnitude[:, None] * (1 - apart).clamp(min=0)
        cells = F.avg_pool2d(votes, CELL) * CELL**2
        energy = F.avg_pool2d((cells**2).sum(1, keepdim=True), 3, 1, 1) * 9
        directions = torch.sqrt(cells / torch.sqrt(energy + 1e-4)).permute(0, 2, 3, 1)
        blocks = images.reshape(-1, 3, GRID, SIDE // GRID, GRID, SIDE // GRID)
        mean = blocks.mean(dim=(3, 5))
        differences = blocks - mean[:, :, :, None, :, None]
        deviation = torch.sqrt((differences * differences).mean(dim=(3, 5)))
        colours = torch.stack((mean, deviation), dim=1)
        return torch.cat((directions.flatten(1), colours.flatten(1)), dim=1)


def _differences(x: Tensor, dim: int) -> Tensor:
    """Central differences, one-sided at the edges, as NumPy's gradient."""
    first = x.narrow(dim, 1, 1) - x.narrow(dim, 0, 1)
    size = x.shape[dim]
    last = x.narrow(dim, size - 1, 1) - x.narrow(dim, size - 2, 1)
    inner = (x.narrow(dim, 2, size - 2) - x.narrow(dim, 0, size - 2)) / 2
    return torch.cat((first, inner, last), dim=dim)


class ImageModel(nn.Module):
    """From pixels to probabilities: statistics and network, standardised, then the linear layer."""

    def __init__(self, head: nn.Linear, features: SampleFeatures, kind: str, network: bool) -> None:
        super().__init__()
        self.statistics = ImageStatistics()
        self.network: nn.Module | None = _network() if network else None
        self.head, self.kind = head, kind
        self.register_buffer("mean", torch.from_numpy(features.mean.copy()))
        # One over an infinite deviation is the 0 that a constant feature becomes.
        self.register_buffer("scale", 1 / torch.from_numpy(features.deviation.copy()))

    def forward(self, pixels_64: Tensor, pixels_128: Tensor | None = None) -> Tensor:
        """(n, 3, 64, 64) and (n, 3, 128, 128) uint8 to (n, classes)."""
        from upslope.models.efficientnet import MEAN, STD

        parts = [self.statistics(pixels_64.float() / 255)]
        if self.network is not None and pixels_128 is not None:
            parts.append(self.network((pixels_128.float() / 255 - MEAN) / STD))
        mean, scale = self.get_buffer("mean"), self.get_buffer("scale")
        values = (torch.cat(parts, dim=1) - mean) * scale
        logits: Tensor = self.head(values)
        return logits.softmax(1) if self.kind == "class" else logits.sigmoid()


def _network() -> nn.Module:
    from upslope import models

    network: Any = models.build(
        "pretrained", num_classes=2, input_shape=(3, NETWORK_SIDE, NETWORK_SIDE)
    )
    network._fc = nn.Identity()
    return network.eval()  # type: ignore[no-any-return]


def _write_onnx(
    path: Path, head: nn.Linear, features: SampleFeatures, kind: str, about: Mapping[str, str]
) -> None:
    import onnx

    network = len(extractors()) > 1
    model = ImageModel(head, features, kind, network).eval()
    sides = (SIDE, NETWORK_SIDE) if network else (SIDE,)
    example = tuple(torch.zeros(2, 3, side, side, dtype=torch.uint8) for side in sides)
    names = [f"pixels_{side}" for side in sides]
    count = torch.export.Dim("n")
    with warnings.catch_warnings(), _quiet(logging.getLogger("torch.onnx")):
        warnings.simplefilter("ignore")  # the exporter's own, of operators that it decomposes
        program = torch.onnx.export(
            model, example, dynamo=True, input_names=names, output_names=["probabilities"],
            dynamic_shapes=tuple({0: count} for _ in sides), verbose=False,
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, dict(about))
    path.write_bytes(proto.SerializeToString())


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Errors alone from a logger: the exporter warns that torchvision, which is not needed, is not
    installed."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_onnx(kind: str) -> None:
    if kind != "image":
        raise ConfigError(
            "Expected images for a model in ONNX, which takes pixels, but this project has texts "
            "or rows. Export NAME.safetensors, or the predictions: upslope label predict."
        )
    missing = [n for n in ("onnx", "onnxscript") if importlib.util.find_spec(n) is None]
    if missing:
        raise missing_package(" and ".join(missing), "to write ONNX", "onnx")
