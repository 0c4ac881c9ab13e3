"""A molecule for the tests of the simulator."""

import numpy as np

from upslope.cryoet.structures import Atoms


def molecule(seed=0, n=60, reach=100.0):
    rng = np.random.default_rng(seed)
    xyz = rng.normal(size=(n, 3))
    xyz *= (reach * rng.random(n) ** (1 / 3) / np.linalg.norm(xyz, axis=1))[:, None]
    return Atoms("toy", xyz, rng.choice([6.0, 7.0, 8.0, 16.0], n))
