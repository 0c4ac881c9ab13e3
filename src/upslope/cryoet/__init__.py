"""Cryo-electron tomography: simulated subtomograms, and the field's own files in and out.

Volumes are (z, y, x): the beam runs along z, the tilt axis is y. Lengths are in angstrom.
"""

from upslope.cryoet.imaging import Imaging, contrast_transfer, measured_region
from upslope.cryoet.simulate import Sample, Simulation, simulate
from upslope.cryoet.structures import Atoms, Map, read_structure

__all__ = [
    "Atoms",
    "Imaging",
    "Map",
    "Sample",
    "Simulation",
    "contrast_transfer",
    "measured_region",
    "read_structure",
    "simulate",
]
