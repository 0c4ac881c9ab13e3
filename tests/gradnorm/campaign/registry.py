"""The families of cases, each a list that its module makes."""

from __future__ import annotations

import importlib

from campaign.case import Case

FAMILIES = {
    "layers": "layers",
    "structures": "structures",
    "heads": "heads",
    "mixing": "mixing",
    "transformers": "hugging_face",
    "MONAI": "medical",
}
"""Name -> the module with its `cases`. A family whose library is not installed has none."""


def cases(family: str) -> list[Case]:
    """The cases of a family."""
    return importlib.import_module(f"campaign.{FAMILIES[family]}").cases()


def every_case() -> list[Case]:
    """The cases of all families."""
    return [case for family in FAMILIES for case in cases(family)]
