"""Networks of many kinds, small, with random weights: what `training_step.py` runs."""

from __future__ import annotations

from speed.zoo import medical, other, published, recurrent
from speed.zoo.entry import Entry

ZOO: dict[str, Entry] = {
    **published.ENTRIES,
    **medical.ENTRIES,
    **recurrent.ENTRIES,
    **other.ENTRIES,
}
"""Name -> network. Those of `transformers` and MONAI are there where these are installed."""
