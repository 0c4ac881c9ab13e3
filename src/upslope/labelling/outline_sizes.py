"""Whether outlines are for the image that they are recorded for: of its size."""

from __future__ import annotations

import io
import json

from PIL import Image

from upslope.errors import DataError
from upslope.images import read_header
from upslope.labelling.samples import FolderImages, Samples, TableRows


def size_problem(samples: Samples, id_: str, outlines: str) -> str:
    """Return a sentence where outlines are for another size than an image has; "" where not.

    outlines: their text, which is sound. An image is as large as people see it, turned by its EXIF
    data.
    """
    height, width = json.loads(outlines)["size"]
    if isinstance(samples, TableRows):
        return f"Expected an image for the outlines of {id_!r} but it is a row."
    if isinstance(samples, FolderImages):
        file = samples.root / id_
        try:
            size = read_header(file, str(file)).size
        except DataError as error:
            return str(error)
    else:
        picture = samples.picture(list(samples.ids).index(id_))
        with Image.open(io.BytesIO(picture.data)) as image:
            size = (image.height, image.width)
    if size == (height, width):
        return ""
    return (
        f"Expected outlines of the {size[1]}x{size[0]} pixels of {id_!r} but they are for "
        f"{width}x{height}: another version of the image."
    )
