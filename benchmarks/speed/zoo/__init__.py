"""Networks of many kinds, small, with random weights: for the benchmarks of norms."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from speed.zoo import medical, other, published, recurrent
from speed.zoo.entry import Entry

ZOO: dict[str, Entry] = {
    **published.ENTRIES,
    **medical.ENTRIES,
    **recurrent.ENTRIES,
    **other.ENTRIES,
}
"""Name -> network. Those of `transformers` and MONAI are there where these are installed."""


def check_networks(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """End with the parser's error if a name on the command line is not that of a network."""
    for name in names:
        if name not in ZOO:
            parser.error(f"expected networks among {', '.join(ZOO)} but got {name!r}")
