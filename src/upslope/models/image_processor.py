"""The form of images that a folder of transformers states in its preprocessor_config.json.

The file names a class of the library, which knows more steps than a normalisation: another order of
channels, a second division, colours as words. They are read here without the library; a step that
is not known is refused, for a network sees something else without it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from upslope.errors import ConfigError
from upslope.model_hub import folder_of
from upslope.models.inputs import ImageForm, stated_form

_KNOWN_STEPS = {
    "do_resize", "do_center_crop", "do_pad", "do_rescale", "do_normalize", "do_convert_rgb",
    "do_reduce_labels", "do_convert_annotations",
}  # fmt: skip
"""Steps that this reader takes, or that change no number which a network sees."""

_ADVICE = "Take a function of your own as the model, `model.name=nets:make`."


def image_form(path: str) -> ImageForm | None:
    """Return the form that the folder's image processor brings images to; None without one.

    path: a folder, or hf:owner/model.

    Raises:
        ConfigError: a processor that cannot be read, or that does more to images than scale and
            normalise them, or that does not state by what.
    """
    file = folder_of(path) / "preprocessor_config.json"
    if not file.is_file():
        return None
    content = _with_defaults(_read(file))
    if "sampling_rate" in content or not {"image_mean", "do_rescale", "do_resize"} & content.keys():
        return None  # of a tokenizer or of sound
    _check_steps(file, content)
    takes_mean_off = content.get("do_normalize", True) is True
    times = takes_mean_off + bool(content.get("include_top"))  # how often images are divided
    if not times:
        return ImageForm((0.0,), (1.0,), _edge(content))
    mean, std = content.get("image_mean"), content.get("image_std")
    form = stated_form(str(file), mean, std, _edge(content))
    if form is None:
        raise ConfigError(
            f"Expected {file} to state image_mean and image_std, or do_normalize=false, but it "
            "states none of them. Save the processor again, by save_pretrained."
        )
    means = form.mean if takes_mean_off else (0.0,) * len(form.mean)
    return ImageForm(means, tuple(value**times for value in form.std), form.size)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"Expected {file} to be readable JSON but: {error}.") from error
    return content


def _with_defaults(content: dict[str, Any]) -> dict[str, Any]:
    """Return the entries with those that a class has where its file does not say them."""
    kind = str(content.get("image_processor_type") or content.get("feature_extractor_type") or "")
    if kind.startswith("MobileViT"):  # states a mean, and does not take it off
        return {"do_resize": True, "do_flip_channel_order": True, **content, "do_normalize": False}
    if kind.startswith("EfficientNet"):
        return {"include_top": True, **content}
    if kind.startswith("Perceiver"):  # crops first, and brings what is left to the size
        return {**content, "do_center_crop": False}
    return content


def _check_steps(file: Path, content: dict[str, Any]) -> None:
    """Raise ConfigError where images are changed in another way than by `ImageForm`."""
    factor = content.get("rescale_factor", 1 / 255)
    is_number = isinstance(factor, int | float)
    if (
        content.get("do_rescale", True) is not True
        or not is_number
        or not abs(255 * factor - 1) <= 1e-6
        or content.get("rescale_offset")
    ):
        words = ", rescale_offset=True" if content.get("rescale_offset") else ""
        raise ConfigError(
            f"Expected {file} to scale pixels from 0..255 to 0..1 but it says do_rescale="
            f"{content.get('do_rescale')}, rescale_factor={factor}{words}. {_ADVICE}"
        )
    steps = [
        key
        for key, value in content.items()
        if key.startswith("do_") and value and key not in _KNOWN_STEPS
    ]
    if steps:
        raise ConfigError(
            f"Expected {file} to scale and normalise images, and no more, but it says "
            f"{', '.join(f'{step}={content[step]}' for step in steps)}. {_ADVICE}"
        )


def _edge(content: dict[str, Any]) -> int | None:
    """Return the pixels along an edge of what the network sees, None where that is no one
    number.
    """
    size = content.get("crop_size") if content.get("do_center_crop") else None
    size = content.get("size") if size is None else size
    if isinstance(size, dict):
        edges = [edge for name in ("height", "width") if (edge := size.get(name)) is not None]
        edges = edges or [size.get("shortest_edge")]
        size = edges[0] if all(edge == edges[0] for edge in edges) else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None
