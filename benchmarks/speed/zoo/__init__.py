"""Networks of many kinds, with random weights: for the benchmarks of norms."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from speed.zoo import full_size, medical, other, published, recurrent
from speed.zoo.entry import Entry

SMALL: dict[str, Entry] = {
    **published.ENTRIES,
    **medical.ENTRIES,
    **recurrent.ENTRIES,
    **other.ENTRIES,
}
"""Name -> network. Those of `transformers` and MONAI are there where these are installed."""

FULL_SIZE: dict[str, Entry] = {f"{name}-full": e for name, e in full_size.ENTRIES.items()}
"""The same at the sizes in which they are published and used."""

ZOO = SMALL | FULL_SIZE


def check_networks(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """End with the parser's error if a name on the command line is not that of a network."""
    for name in names:
        if name not in ZOO:
            parser.error(f"expected networks among {', '.join(ZOO)} but got {name!r}")
