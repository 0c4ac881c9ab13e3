"""Tell whether processes hold the same samples, and build the same network."""

from __future__ import annotations

from dataclasses import dataclass

from upslope.errors import DataError, ModelError


@dataclass(frozen=True)
class Fingerprint:
    """What must be equal in every process: of the samples that it holds, of the network it builds.

    samples, network: plain data, which can be compared; None where there is nothing to compare.
    """

    samples: object
    network: object = None


def check_alike(one: Fingerprint, other: Fingerprint, all_words: str, who: str, than: str) -> None:
    """Raise an error where two processes hold other samples, or build other networks.

    one, other: of the process that leads, and of another. all_words, who, than: the processes, the
    other one and the one that leads, in words.

    Raises:
        DataError: other samples.
        ModelError: another network.
    """
    if other.samples != one.samples:
        raise DataError(
            f"Expected {all_words} to open the same data but {who} found other samples than "
            f"{than}. Give each machine the same files."
        )
    if other.network != one.network:
        raise ModelError(
            f"Expected {all_words} to build the same network but {who} built one of other layers "
            f"or settings than {than}. Give each machine the same code."
        )
