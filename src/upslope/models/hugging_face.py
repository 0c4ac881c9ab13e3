"""Networks of Hugging Face transformers: classifiers of texts, of images and of their pixels.

They come from a local folder or, under a name that asks for it, hf:owner/model, from the Hub. No
code of a folder is run, and weights are read from safetensors alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import ConfigError, ModelError
from upslope.extras import import_package
from upslope.model_hub import folder_of
from upslope.models.features import head
from upslope.models.text import SequenceClassifier

Output = Literal["auto", "classes", "pixels"]

_LOADING = {"local_files_only": True, "trust_remote_code": False}


class ImageClassifier(nn.Module):
    """A network of transformers that takes images. Input (n, c, h, w); output (n, num_classes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes) for (n, c, h, w)."""
        outputs: Any = self.network(pixel_values=x)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        return logits


class PixelClassifier(nn.Module):
    """A network of transformers that segments images.

    Input (n, c, h, w); output (n, num_classes, h, w): logits of fewer pixels are interpolated
    bilinearly, as the library does for its masks.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, num_classes, h, w) for (n, c, h, w)."""
        outputs: Any = self.network(pixel_values=x)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
        if logits.shape[-2:] == x.shape[-2:]:
            return logits
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def from_folder(
    num_classes: int,
    input_shape: tuple[int, ...],
    path: Annotated[
        str,
        Field(
            description="folder with config.json and, for its weights, model.safetensors; or "
            "hf:owner/model, perhaps with @commit, which downloads them from the Hub"
        ),
    ] = "",
    weights: Annotated[
        bool, Field(description="begin with the folder's weights, not with random ones")
    ] = True,
    output: Annotated[
        Output,
        Field(description="what images get: a class, or one per pixel; auto: as config.json says"),
    ] = "auto",
    lora: Annotated[
        int | None,
        Field(ge=1, description="rank of LoRA's adapters, trained in place of linear layers; PEFT"),
    ] = None,
) -> SequenceClassifier | ImageClassifier | PixelClassifier:
    """A classifier of texts, images or pixels of Hugging Face transformers; needs [text]."""
    folder = folder_of(path)
    if lora is not None and not weights:
        raise ConfigError(
            "Expected trained weights for `lora`, whose adapters change them a little, but "
            "`weights` is false. Leave one of them out."
        )
    text = len(input_shape) == 2 and input_shape[0] == 2
    if not text and len(input_shape) != 3:
        raise ModelError(
            "Expected inputs of shape (2, t), token ids and mask, or (c, h, w), images, for the "
            f"model `transformers` but got {tuple(input_shape)}. Use the data set `text`, or one "
            "of images."
        )
    transformers = import_package("transformers", "for the model 'transformers'", "text")
    pixels = not text and (_segments(folder) if output == "auto" else output == "pixels")
    kind, auto = _kind(transformers, text=text, pixels=pixels)
    try:
        with _without_reports(transformers):
            if weights:
                network, new = _load(auto, folder, num_classes, pixels)
            else:
                config = transformers.AutoConfig.from_pretrained(
                    folder, **_LOADING, num_labels=num_classes
                )
                network, new = auto.from_config(config), set[str]()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]  # what follows lists all classes of the library
        raise ModelError(
            f"Expected a model of transformers in {folder} that classifies {kind}, as inputs have "
            f"the shape {tuple(input_shape)}, but loading it failed: {reason}"
        ) from error
    if lora is not None:
        _adapt(network, lora, new, _output_layers(network, pixels, num_classes))
    # Such models come in evaluation mode, and in the type of the folder's weights, in which half
    # precision would lose what a step of training adds; ours begin as every module does.
    network.float().train()
    if text:
        return SequenceClassifier(network)
    return PixelClassifier(network) if pixels else ImageClassifier(network)


def _kind(transformers: Any, *, text: bool, pixels: bool) -> tuple[str, Any]:
    """Return what a network classifies, in words, and the library's class that loads such."""
    if text:
        return "texts", transformers.AutoModelForSequenceClassification
    if pixels:
        return "pixels of images", transformers.AutoModelForSemanticSegmentation
    return "images", transformers.AutoModelForImageClassification


@contextmanager
def _without_reports(transformers: Any) -> Iterator[None]:
    """Keep the library's progress bars and load reports from the terminal, of which each cycle
    would get one; what is wrong with weights is an error here."""
    log = transformers.utils.logging
    level, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if has_bars:
            log.enable_progress_bar()


def _load(auto: Any, folder: Path, num_classes: int, pixels: bool) -> tuple[nn.Module, set[str]]:
    """Return the network with the folder's weights, and the names of what the folder has none for.

    A head for other classes than the folder's is made anew, and so are layers of the head that the
    folder has no weights for.
    """
    network, report = auto.from_pretrained(
        folder,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **_LOADING,
        num_labels=num_classes,
    )
    new = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    _check_head_alone_is_other(
        network, report, folder, _output_layers(network, pixels, num_classes)
    )
    _check_head_alone_is_new(network, new, folder)
    return network, new


def head_classes(path: str) -> tuple[str, ...]:
    """Return the names of the classes that a folder's head was trained on, in its order.

    Empty where its config.json names none, or calls them LABEL_0, LABEL_1, ..., as the library does
    for classes without a name.

    path: a folder, or hf:owner/model.
    """
    try:
        text = (folder_of(path) / "config.json").read_text(encoding="utf-8")
        names = {int(number): str(name) for number, name in json.loads(text)["id2label"].items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ()
    return tuple(names[number] for number in sorted(names))


def _segments(folder: Path) -> bool:
    """Return whether the folder's config.json names a network that segments images."""
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        return any(str(name).endswith("ForSemanticSegmentation") for name in names)
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return False  # what is wrong with it, the library says


def _output_layers(network: nn.Module, pixels: bool, num_classes: int) -> list[nn.Module]:
    """Return the layers that make the logits: the last linear one or, of pixels, convolutions.

    Raises:
        ModelError: there is none.
    """
    if not pixels:
        return [head(network)]
    layers: list[nn.Module] = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.out_channels == num_classes
    ]
    if not layers:
        raise ModelError(
            f"Expected a convolution with {num_classes} outputs, one per class, in "
            f"{type(network).__name__} but there is none. Take a function of your own as the "
            "model, `model.name=nets:make`."
        )
    return layers


def _check_head_alone_is_other(
    network: nn.Module, report: Any, folder: Path, layers: list[nn.Module]
) -> None:
    """Raise ModelError where more than the layers of the logits has another shape in the folder."""
    heads = tuple(f"{n}." for n, module in network.named_modules() if module in layers)
    others = [e[0] for e in report["mismatched_keys"] if not e[0].startswith(heads)]
    if others:
        raise ModelError(
            f"Expected the weights in {folder} to have the shapes that its config.json states but "
            f"{', '.join(others[:3])} have others. Save the model again."
        )


def _check_head_alone_is_new(network: nn.Module, new: set[str], folder: Path) -> None:
    """Raise ModelError where layers without weights lie before, or between, those that have some.

    The library draws them at random, and a network of trained layers behind such ones has learnt
    nothing of what they put out. What lies behind all others is a head.

    new: names of parameters and statistics that the folder had nothing for.
    """
    # A count of batches says nothing, and old files have none.
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    behind = max((k + 1 for k, name in enumerate(names) if name not in new), default=len(names))
    missing = [name for name in names[:behind] if name in new]
    if missing:
        raise ModelError(
            f"Expected weights in {folder} for all layers of {type(network).__name__} below its "
            f"head but {len(missing)} of {len(names)} are missing: {', '.join(missing[:3])}. Save "
            "the model again, by save_pretrained, or begin with random weights, `weights: false`."
        )


def _adapt(network: nn.Module, rank: int, new: set[str], layers: list[nn.Module]) -> None:
    """Train adapters in place of the linear layers, and whole what has no trained weights.

    new: names of parameters that the folder had no weights for. layers: those that make the logits,
    which are trained whole too.
    """
    peft = import_package("peft", "for `lora`", "lora")
    whole = {id(p) for layer in layers for p in layer.parameters()}
    whole |= {id(p) for name, p in network.named_parameters() if name in new}
    targets = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in whole
    ]
    if not targets:
        raise ConfigError(
            f"Expected {type(network).__name__} to have linear layers below its head for `lora` "
            "but it has none. Leave `lora` out."
        )
    network.requires_grad_(False)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    peft.inject_adapter_in_model(config, network)
    for parameter in network.parameters():
        if id(parameter) in whole:
            parameter.requires_grad_(True)
