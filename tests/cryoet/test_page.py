"""The page of slices: one column per class, the wedge empty in the row of transforms."""

import numpy as np
from molecules import molecule
from PIL import Image

from upslope.cryoet.density import template
from upslope.cryoet.imaging import Imaging
from upslope.cryoet.page import write_page


def test_page(tmp_path):
    seen = Imaging(snr=0.05)
    templates = [template(molecule(seed), seen) for seed in range(12)]
    write_page(tmp_path / "page.png", templates, seen)
    page = np.asarray(Image.open(tmp_path / "page.png"))
    side = 96 + 6
    height = 5 * side + 16
    assert page.shape == (2 * (height + 6), 10 * side)
    transform = page[16 + 3 * side :][:96, :96]
    assert transform[:39, 48:51].max() == 0  # along z through the centre: the wedge
    assert transform[48:51, 48:51].max() == 0  # the mean is taken out
    assert (transform[49, [34, 40]] > 60).all()  # along x: measured
    assert page[-30:, 8 * side :].min() == 255  # no thirteenth class
