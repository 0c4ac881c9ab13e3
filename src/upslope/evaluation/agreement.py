"""How far people agree who label the same samples, beyond what chance would give.

    kappa = (observed - expected) / (1 - expected)

observed: the share of pairs of answers that agree. expected: that share if answers were drawn at
random, for Cohen (Educational and Psychological Measurement 20, 1960) from each person's own
frequencies, for Fleiss (Psychological Bulletin 76, 1971) from those of all people together.
1 is full agreement, 0 is chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from upslope.errors import DataError
from upslope.evaluation.floats import as_floats


def cohen_kappa(one: Sequence[object], other: Sequence[object]) -> float:
    """Return Cohen's kappa of two people's labels of the same samples, in the same order.

    one, other: the labels of each, one per sample, whatever can be compared. NaN where both gave
    every sample one and the same label: chance would agree as well.

    Raises:
        DataError: no sample, or lists of different lengths.
    """
    if not len(one) or len(one) != len(other):
        raise DataError(
            f"Expected as many labels of both people but got {len(one)} and {len(other)}."
        )
    names: list[object] = []  # by equality: 1 of NumPy is 1, and lists have no hash

    def number(label: object) -> int:
        plain = label.tolist() if hasattr(label, "tolist") else label
        if plain not in names:
            names.append(plain)
        return names.index(plain)

    a, b = ([number(label) for label in labels] for labels in (one, other))
    shares = [np.bincount(x, minlength=len(names)) / len(x) for x in (a, b)]
    return _kappa(float(np.mean(np.equal(a, b))), float(shares[0] @ shares[1]))


def fleiss_kappa(counts: ArrayLike) -> float:
    """Return Fleiss' kappa.

    counts: (samples, classes), how many people gave a sample that label; each sample has answers
        of the same number of people, two or more, who need not be the same people.

    NaN where all answers are of one class.

    Raises:
        DataError: counts of another form.
    """
    table = as_floats(counts, "counts")
    people = table.sum(axis=1) if table.ndim == 2 and len(table) else np.zeros(1)
    is_whole = bool(((table >= 0) & (table == np.floor(table))).all())
    if not is_whole or people[0] < 2 or not (people == people[0]).all():
        raise DataError(
            "Expected counts (samples, classes) with the same number of people per sample, two or "
            f"more, in whole numbers, but got an array of shape {table.shape} with "
            f"{sorted(set(people.tolist()))} people."
        )
    n = people[0]
    observed_agreement = ((table**2).sum(axis=1) - n) / (n * (n - 1))
    shares = table.sum(axis=0) / table.sum()
    return _kappa(float(observed_agreement.mean()), float((shares**2).sum()))


def _kappa(observed_agreement: float, expected_agreement: float) -> float:
    return (
        (observed_agreement - expected_agreement) / (1 - expected_agreement)
        if expected_agreement < 1
        else float("nan")
    )
