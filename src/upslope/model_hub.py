"""Folders of models: on this machine, or on the Hugging Face Hub, hf:owner/model or with @commit.

The one way to a download of a model is such a name. What comes is the configuration, weights as
safetensors, the form of images and the numbers of words: no code, and no pickles.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from upslope.errors import ConfigError, ModelError
from upslope.extras import import_package

PREFIX = "hf:"
_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<commit>[\w./-]+))?", re.ASCII)
_FILES = (
    "config.json", "preprocessor_config.json", "tokenizer.json", "model*.safetensors",
    "model.safetensors.index.json",
)  # fmt: skip


def folder_of(path: str) -> Path:
    """Return the folder that holds a model's config.json, from the Hub where the path says so.

    Raises:
        ConfigError: no such folder, a name on the Hub that is none, or a package that is missing.
        ModelError: the model is neither on the Hub nor in its cache, or cannot be reached.
    """
    if path.startswith(PREFIX):
        return _from_hub(path)
    folder = Path(path).expanduser()
    if not path or not (folder / "config.json").is_file():
        raise ConfigError(
            f"Expected `path` to be a folder with a config.json but got {path!r}. Save one with "
            "transformers' save_pretrained, or give hf:owner/model, which downloads it."
        )
    return folder


@lru_cache(maxsize=32)  # a network is built in every cycle, and the Hub need be asked once
def _from_hub(path: str) -> Path:
    match = _NAME.fullmatch(path.removeprefix(PREFIX))
    if match is None:
        raise ConfigError(
            f"Expected a model's name, hf:owner/model or hf:owner/model@commit, but got {path!r}."
        )
    hub = import_package("huggingface_hub", f"for the model {path!r}", "text")
    try:
        folder = Path(
            hub.snapshot_download(
                match["name"], revision=match["commit"], allow_patterns=list(_FILES)
            )
        )
    # Whatever goes wrong between here and the Hub: the library has no base of its errors.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"Expected the model {path!r} on the Hugging Face Hub or in its cache but getting it "
            f"failed: {type(error).__name__}: {reason}. Without a network, save it where there is "
            "one (`save_pretrained`) and give the folder in place of the name."
        ) from error
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"Expected a config.json in the model {path!r} on the Hugging Face Hub but it has "
            "none. Name a model of transformers."
        )
    return folder
