"""Masks as answers: numbers that losses changed, or that may be levels, are no classes."""

import base64
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from upslope.errors import DataError
from upslope.tasks.mask_answers import PREFIX, decode_mask, mask_of

MASK = np.zeros((32, 32), dtype=np.uint8)
MASK[8:20, 8:20], MASK[20:, 20:] = 2, 1


def told(answer, classes=4):
    return decode_mask(mask_of(answer, classes, 255))


def as_palette(entries, greys):
    image = Image.fromarray(entries)
    image.putpalette([level for grey in greys for level in (grey, grey, grey)])
    return image


def test_a_class_that_no_byte_holds_is_refused():
    """Class 299 of 300 was recorded as class 43."""
    answer = np.full((2, 2), 299)
    with pytest.raises(DataError, match=r"classes up to 255.*got class 299"):
        mask_of(answer, 300, -1)
    assert np.array_equal(decode_mask(mask_of(answer - 44, 300, -1)), answer - 44)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("TIFF", {"compression": "jpeg"})])
def test_a_mask_with_losses_is_refused(tmp_path, kind, options):
    path = tmp_path / "mask.png"
    Image.fromarray(MASK).save(path, kind, **options)
    with pytest.raises(DataError, match=f"lossless mask but got .*mask.png: {kind} with losses"):
        told(path)


def test_a_palette_of_greys_under_other_numbers_counts_by_what_is_a_class(tmp_path):
    path = tmp_path / "mask.png"
    entries = np.choose(MASK, [0, 2, 1]).astype(np.uint8)
    as_palette(entries, [0, 2, 1]).save(path)  # both the numbers and the greys are classes
    with pytest.raises(DataError, match="the number 1 is the grey 2, and both stand for something"):
        told(path)
    as_palette(MASK, [0, 90, 180]).save(path)  # the numbers alone
    assert np.array_equal(told(path), MASK)
    as_palette(np.choose(MASK, [5, 6, 7]).astype(np.uint8), [9, 9, 9, 9, 9, 0, 1, 2]).save(path)
    assert np.array_equal(told(path), MASK)  # the greys alone
    colours = Image.fromarray(MASK)
    colours.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    colours.save(path)
    assert np.array_equal(told(path), MASK)


def test_numbers_that_readers_scale_to_levels_count_by_what_is_a_class(tmp_path):
    path = tmp_path / "mask.pgm"
    path.write_bytes(b"P5\n32 32\n3\n" + MASK.tobytes())  # 3 is brought to 255, which is ignored
    assert np.array_equal(told(path), MASK)
    path.write_bytes(b"P5\n32 32\n1\n" + (MASK > 0).tobytes())
    with pytest.raises(DataError, match="the number 1 is the grey 255, and both stand for"):
        told(path)
    path.write_bytes(b"P5\n32 32\n255\n" + MASK.tobytes())
    assert np.array_equal(told(path), MASK)


def as_text(image, **options):
    stream = io.BytesIO()
    image.save(stream, **options)
    return PREFIX + base64.b64encode(stream.getvalue()).decode()


def test_a_mask_as_text_is_read_as_a_file_is():
    """Levels above 255 were cut to 8 bits: 258 was class 2."""
    assert np.array_equal(told(as_text(Image.fromarray(MASK), format="PNG")), MASK)
    deep = Image.fromarray(MASK.astype(np.uint16) + 256)
    with pytest.raises(DataError, match=r"classes 0 to 3, .* but got \[256, 257, 258\]"):
        told(as_text(deep, format="PNG"))
    bits = as_text(as_palette(MASK, [0, 90, 180, 0]), format="PNG", bits=2)
    assert np.array_equal(told(bits), MASK)
    with pytest.raises(DataError, match="JPEG with losses"):
        told(as_text(Image.fromarray(MASK), format="JPEG"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_files_of_16_bits_in_either_order_are_read(tmp_path, order):
    path = tmp_path / "mask.tif"
    Image.fromarray(MASK.astype(f"{order}u2")).save(path)
    assert np.array_equal(told(path), MASK)


def test_an_opaque_alpha_channel_is_none(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(MASK).convert("LA").save(path)
    assert np.array_equal(told(path), MASK)
    Image.fromarray(np.stack([MASK, MASK], axis=2)).save(path)
    with pytest.raises(DataError, match="of mode LA"):
        told(path)


def test_an_answer_of_black_and_white_is_told():
    """Of two classes, the second would be nowhere, and what is white count nowhere."""
    white = (MASK > 0) * np.uint8(255)
    with pytest.warns(UserWarning, match="holds 0 and 255 alone: .* answer again with 1"):
        assert np.array_equal(told(white, classes=2), white)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told(MASK, classes=3)
        told(white, classes=3)
        told(np.where(MASK == 2, 255, MASK), classes=2)
