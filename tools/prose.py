"""Measure the prose of the source, and fail where it is worse than the limits at the head.

    python tools/prose.py            # one table; exit status 1 beyond a limit
    python tools/prose.py --list     # the places too

Run by `make check`. A public object is one that a package names in `__all__` and defines in Python: a
function, a class, or a public method of such a class. Its docstring is in the one format of the
project: text, then "name: meaning" for arguments, "Returns" or a first line that says what is returned,
and "Raises:".
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "upslope"

LIMITS = {
    "docstrings under 26 characters": 0,
    "names bound to `found`": 0,
    "rates as `a sample`": 0,
    "modules that open with What": 0,
    "arguments documented, %": 0.0,
    "returns documented, %": 0.0,
    "raises documented, %": 0.0,
    "examples documented, %": 0.0,
    "comments per 100 lines in gradnorm": 0.0,
}
"""The first four are the most that there may be; the others the least."""

SHORT = 26
_RATE = re.compile(
    r"\b(?:one|two|a|each|per|[\w.,]+) ?(?:number|loss|row|value|label|score|forward|backward|pass|"
    r"posterior|gradient|label|class)?s? a (?:sample|candidate|second|cycle|class|seed|run|batch|step|"
    r"strategy|file|line|name|pixel|position|column|channel|microbatch|epoch|label)\b(?! of\b)"
)
