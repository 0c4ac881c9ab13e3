"""The exported model of a project, read again: it predicts photographs by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upslope.checkpoints import read_safetensors
from upslope.errors import ConfigError, ModelError
from upslope.labelling.extraction import features_without_store, image_methods
from upslope.labelling.features import NETWORK, STATISTICS, Floats
from upslope.labelling.learner import apply_model
from upslope.labelling.samples import ImageSamples
from upslope.labelling.settings import AnswerKind, ReadingOptions

_KINDS: tuple[AnswerKind, ...] = ("class", "labels")
_TENSORS = ("weight", "bias", "mean", "deviation")


@dataclass(frozen=True)
class ModelFile:
    """A linear layer on standardised features. kind: of its answers. method: what the features are.
    mean, deviation: (d,), those by which they are standardised. labels: that taught it. reading:
    how images were read, and are to be read."""

    head: nn.Linear
    classes: tuple[str, ...]
    kind: AnswerKind
    method: str
    mean: Floats
    deviation: Floats
    labels: int
    reading: ReadingOptions

    def probabilities(self, samples: ImageSamples) -> Floats:
        """Return (n, classes) probabilities, NaN rows where an image cannot be read.

        Raises:
            ConfigError: a model of texts or rows, or features that cannot be taken here.
        """
        methods = image_methods()
        if not self.method.startswith(STATISTICS):
            raise ConfigError(
                "Expected a model of images but this one is of texts or rows, whose features "
                "depend on all rows of the project. Predict with the project itself."
            )
        if self.method not in methods:
            extra = "label,vision" if NETWORK in self.method else "label"
            raise ConfigError(
                f"Expected to take the features of the model, {self.method}, but there are here "
                f"{methods[-1]}: pip install '.[{extra}]' in the clone, of the version that wrote "
                "the model."
            )
        raw = features_without_store(samples, methods.index(self.method) + 1)
        if raw.shape[1] != len(self.mean):
            raise ConfigError(
                f"Expected {len(self.mean):,} features, as the model has, but there are "
                f"{raw.shape[1]:,} here. Take the version of Upslope that wrote the model."
            )
        values: Floats = ((raw - self.mean) / self.deviation).astype(np.float32)
        return apply_model(self.head, values, self.kind)


def read_model_file(path: Path) -> ModelFile:
    """Read a model that `export_model` wrote as safetensors.

    Raises:
        ModelError: another file, or a damaged one.
    """
    if path.suffix.lower() == ".onnx":
        raise ModelError(
            f"Expected a model in .safetensors but got {path}, which onnxruntime runs. Export "
            "NAME.safetensors as well."
        )
    tensors, about = read_safetensors(path)
    try:
        classes = json.loads(about["classes"])
        kind = _kind(about["kind"])
        method, labels = about["features"], int(about["labels"])
        reading = ReadingOptions(white=int(about["white"]) if "white" in about else None)
        if set(tensors) != set(_TENSORS) or any(t.dtype != torch.float32 for t in tensors.values()):
            raise ValueError(f"it holds {', '.join(sorted(tensors)) or 'nothing'}")
        _check_parts(classes, tensors)
    except (ConfigError, KeyError, ValueError, TypeError, RecursionError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"Expected {path} to be a model that `upslope label export` wrote but {said}. Give "
            "that file, or the folder of the project; other checkpoints: upslope predict."
        ) from error
    head = nn.Linear(tensors["weight"].shape[1], len(classes))
    with torch.no_grad():
        head.weight.copy_(tensors["weight"])
        head.bias.copy_(tensors["bias"])
    mean, deviation = tensors["mean"].numpy(), tensors["deviation"].numpy()
    return ModelFile(head.eval(), tuple(classes), kind, method, mean, deviation, labels, reading)


def _kind(name: str) -> AnswerKind:
    for kind in _KINDS:
        if kind == name:
            return kind
    raise ValueError(f"it is of the kind {name!r}")


def _check_parts(classes: Any, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError where the parts of a model do not fit each other."""
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"its classes are {classes!r:.80}")
    weight = tensors["weight"]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    d = weight.shape[1] if weight.ndim == 2 else 0
    fitting_shapes = {"weight": (len(classes), d), "bias": (len(classes),), "mean": (d,),
                "deviation": (d,)}  # fmt: skip
    if shapes != fitting_shapes or not d:
        raise ValueError(f"its parts have the shapes {shapes}")
    finite = all(bool(tensors[n].isfinite().all()) for n in ("weight", "bias", "mean"))
    if not finite or not bool((tensors["deviation"] > 0).all()):
        raise ValueError("it holds numbers that are not finite")
