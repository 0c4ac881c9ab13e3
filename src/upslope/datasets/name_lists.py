"""The option type of several names: text with commas between, or a list.

Both ways of writing it become the same value, so that a run begun with one goes on with the other.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from upslope.errors import ConfigError


def _as_text(value: Any) -> Any:
    """Return a list of names as text with commas between, unless that would be other names."""
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        text = ",".join(value)
        return text if text.split(",") == [n.strip() for n in value] == list(value) else list(value)
    return value


Names = Annotated[str | list[str], BeforeValidator(_as_text)]
OptionalNames = Annotated[str | list[str] | None, BeforeValidator(_as_text)]


def split_names(names: str | list[str], option: str) -> list[str]:
    """Return the names one by one: those of a list as they are, those of text without spaces.

    option: what gave them, as it is typed, such as `data.columns`.

    Raises:
        ConfigError: one of them is there twice.
    """
    values = names if isinstance(names, list) else [name.strip() for name in names.split(",")]
    values = [name for name in values if name]
    if twice := [name for i, name in enumerate(values) if name in values[:i]]:
        raise ConfigError(f"Expected `{option}` to name each once but got {twice[0]!r} twice.")
    return values
