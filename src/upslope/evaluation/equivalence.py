"""When "equal" and "not worse" may be said, of paired differences in a figure.

A difference that is not shown is no equality. Equality is shown where the mean difference is shown
to lie within a margin that does not matter, the region of practical equivalence (ROPE):

- two one-sided paired t tests (Schuirmann 1987): p is the larger of "the mean is at or below
  -margin" and "it is at or above +margin".
- not worse: the one-sided test of "the mean is at or below -margin" alone.
- probabilities that the mean lies below, within and above the ROPE: its posterior under the
  reference prior, a t distribution around the mean of the seeds (Benavoli et al., JMLR 18, 2017).

Figures on a test set are multiples of a share, so that seeds may have one difference by chance. A
t test of these would be certain: both tests are then of signs alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from upslope.errors import DataError
from upslope.evaluation.curves import Array, have_spread
from upslope.evaluation.floats import as_floats, as_number


@dataclass(frozen=True)
class Equivalence:
    """p_equal, p_not_worse: of the tests, NaN for one seed. below, within, above: probabilities of
    where the mean lies, NaN for one seed and for seeds of one difference."""

    p_equal: float
    p_not_worse: float
    below: float
    within: float
    above: float


def equivalence(differences: ArrayLike, margin: float) -> Equivalence:
    """Return whether the mean of paired differences lies within a margin around 0, by two tests.

    Args:
        differences: (n_seeds,), strategy minus reference.
        margin: half the width of the ROPE, above 0, in the unit of the differences.

    Raises:
        DataError: no difference, one that is not finite, or a margin that is no finite number above
            0.
    """
    d = as_floats(differences, "differences")
    if d.ndim != 1 or len(d) == 0 or not bool(np.isfinite(d).all()):
        raise DataError(f"Expected finite differences, one per seed, but got {d.tolist()}.")
    margin = as_number(margin, "margin")
    if margin <= 0:
        raise DataError(f"Expected `margin` to be above 0 but got {margin}.")
    if len(d) == 1:
        return Equivalence(math.nan, math.nan, math.nan, math.nan, math.nan)
    if not have_spread(d):
        return _by_signs(d, margin)
    mean, error = float(d.mean()), float(d.std(ddof=1)) / np.sqrt(len(d))
    below = float(stats.t.cdf((-margin - mean) / error, len(d) - 1))
    above = float(stats.t.sf((margin - mean) / error, len(d) - 1))
    # Under the reference prior the tail of the posterior is the p of the one-sided test.
    return Equivalence(max(below, above), below, below, max(0.0, 1 - below - above), above)


def _by_signs(differences: Array, margin: float) -> Equivalence:
    """Return the tests where seeds have one difference: of signs, without probabilities."""
    chance, mean = 0.5 ** len(differences), float(differences.mean())
    not_worse, not_better = (chance if sign * mean > -margin else 1.0 for sign in (1, -1))
    return Equivalence(max(not_worse, not_better), not_worse, math.nan, math.nan, math.nan)
