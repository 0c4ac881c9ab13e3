"""One prediction from several views of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_over_views(
    logits: Callable[[Tensor], Tensor], images: Tensor, shift: int, *, border: Tensor | None
) -> Tensor:
    """Return the logarithm of the mean posterior over an image, its mirror image, shifted ones.

    logits: (n, c, h, w) -> (n, classes). shift: pixels, down-right and up-left; with 0, the image
    and its mirror image alone. The place of the image counts half, the two others a quarter each.
    border: (1, c, 1, 1), the value outside; 0 where None. Returns (n, classes): logits as well.
    """
    places = [(images, 1.0)]
    if shift:
        n, c, h, w = images.shape
        outside = images.new_zeros(1) if border is None else border
        with_border = outside.expand(n, c, h + 2 * shift, w + 2 * shift).clone()
        with_border[:, :, shift:-shift, shift:-shift] = images
        ends = (slice(0, -2 * shift), slice(2 * shift, None))
        places = [(images, 0.5), *((with_border[:, :, end, end], 0.25) for end in ends)]
    total: Tensor | None = None
    for place, weight in places:
        for view in (place, place.flip(3)):
            part = F.log_softmax(logits(view), dim=1) + torch.tensor(weight / 2).log()
            total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    return total
