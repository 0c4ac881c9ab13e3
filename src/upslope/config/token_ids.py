"""The tokens of a network of texts, which must be those that its weights were trained on."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from upslope import datasets
from upslope.config.schema import Config
from upslope.errors import ConfigError

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
    own = Path(str(options.get("path", ""))).expanduser() / _FILE
    if tokenizer is None or not own.is_file():
        return
    name = str(config.data.options.get("tokenizer", tokenizer.default))
    path = Path(name).expanduser()
    other = path / _FILE if path.is_dir() else path
    if name != tokenizer.default and (not other.is_file() or _words(own) == _words(other)):
        return
    raise ConfigError(
        f"data.tokenizer: expected that of the network, {own}, as its weights were trained on the "
        f"numbers that it gives to words, but got {name!r}, which gives others. Set "
        f"data.tokenizer={own.parent}."
    )


def _words(file: Path) -> Any:
    """Return what says which number a word has; None where the file does not."""
    try:
        content = json.loads(file.read_bytes())
        added = content.get("added_tokens") or []
        return content["model"]["vocab"], {token["content"]: token["id"] for token in added}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
