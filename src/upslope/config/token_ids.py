"""The tokens of a network of texts, which must be those that its weights were trained on."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from upslope import datasets
from upslope.config.schema import Config
from upslope.errors import ConfigError
from upslope.model_hub import PREFIX, folder_of

_FILE = "tokenizer.json"


def check_tokenizer(config: Config) -> None:
    """Refuse token ids that stand for other words than those of the network's own tokenizer.

    Of a folder of transformers with weights and a tokenizer.json. A tokenizer that cannot be read
    is told of where texts are.

    Raises:
        ConfigError: naming both.
    """
    options = config.model.options
    if config.model.name != "transformers" or not options.get("weights", True):
        return
    tokenizer = inspect.signature(datasets.loader(config.data.name)).parameters.get("tokenizer")
    if tokenizer is None:
        return
    model_name = str(options.get("path", ""))
    file = _file(model_name)
    if not file.is_file():
        return
    name = str(config.data.options.get("tokenizer", tokenizer.default))
    other = _file(name)
    if name != tokenizer.default and (not other.is_file() or _words(file) == _words(other)):
        return
    raise ConfigError(
        f"data.tokenizer: expected that of the network, {file}, as its weights were trained on the "
        f"numbers that it gives to words, but got {name!r}, which gives others. Set "
        f"data.tokenizer={model_name}."
    )


def _file(name: str) -> Path:
    """Return the file of a folder, of a model on the Hub, or that the name itself says."""
    path = folder_of(name) if name.startswith(PREFIX) else Path(name).expanduser()
    return path / _FILE if path.is_dir() else path


def _words(file: Path) -> Any:
    """Return what says which number a word has; None where the file does not."""
    try:
        content = json.loads(file.read_bytes())
        marks = content.get("added_tokens") or []
        return content["model"]["vocab"], {token["content"]: token["id"] for token in marks}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
