"""Masks and boxes: exact both ways, refused by name, and Label Studio's code read bit by bit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from studio import LABEL_STUDIO

from upslope.errors import DataError
from upslope.labelling.annotators.brush import decode_brush
from upslope.labelling.annotators.label_studio_form import answer_of
from upslope.labelling.outlines import boxes_text, canonical, masks_text, read_outlines

CLASSES = ("car", "tree")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_masks_come_back_pixel_for_pixel(share: float) -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (3, 7), (40, 31)):
        masks = {name: rng.random((height, width)) < share for name in CLASSES}
        text = masks_text((height, width), masks, CLASSES)
        again = read_outlines(text, "masks", CLASSES)
        assert again.masks is not None
        for name in CLASSES:
            there = again.masks.get(name, np.zeros((height, width), dtype=bool))
            np.testing.assert_array_equal(there, masks[name])
        assert canonical(json.dumps(json.loads(text), indent=1), "masks", CLASSES) == text


def test_boxes_have_one_text_whatever_their_order() -> None:
    boxes = [("tree", 1.0, 2.0, 3.0, 4.5), ("car", 0.0, 0.0, 10.0, 20.0)]
    text = boxes_text((20, 10), boxes)
    assert text == boxes_text((20, 10), boxes[::-1])
    assert read_outlines(text, "boxes", CLASSES).boxes == tuple(sorted(boxes))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("cat", "boxes"),
        ("[]", "masks"),
        ('{"boxes":[["bus",0,0,1,1]],"size":[9,9]}', "boxes"),
        ('{"boxes":[["car",0,0,10,1]],"size":[9,9]}', "boxes"),
        ('{"masks":{"car":[80]},"size":[9,9]}', "masks"),
        ('{"masks":{"car":[90,-9]},"size":[9,9]}', "masks"),
        ('{"masks":{"car":[81]},"size":[9.0,9]}', "masks"),
        ('{"masks":{},"size":[0,9]}', "masks"),
    ],
)
def test_what_is_no_outline_is_refused(text: str, kind: str) -> None:
    with pytest.raises(DataError):
        read_outlines(text, kind, CLASSES)


def bits(*fields: tuple[int, int]) -> list[int]:
    """Bytes of fields (value, width), the most significant bit first."""
    text = "".join(f"{value:0{width}b}" for value, width in fields)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def test_a_brush_written_by_hand_bit_by_bit() -> None:
    # 2 x 1 pixels: RGBA 9, 9, 9, 255 one by one, then 0 four times as a run.
    head = [(8, 32), (7, 5), (2, 4), (3, 4), (3, 4), (3, 4)]
    literal = [(0, 1), (0, 2), (3, 3), (9, 8), (9, 8), (9, 8), (255, 8)]
    run = [(1, 1), (1, 2), (3, 4), (0, 8)]
    code = bits(*head, *literal, *run)
    np.testing.assert_array_equal(decode_brush(code, 2, 1), [[True, False]])
    with pytest.raises(DataError, match="another count"):
        decode_brush(code, 3, 1)
    with pytest.raises(DataError, match="too early"):
        decode_brush(code[:9], 2, 1)
    with pytest.raises(DataError, match="bytes of a brush"):
        decode_brush([300], 2, 1)


@pytest.mark.slow
def test_brushes_are_those_of_label_studios_own_coder(tmp_path: Path) -> None:
    python = LABEL_STUDIO / "bin" / "python"
    if not python.is_file():
        pytest.skip("needs Label Studio (UPSLOPE_LABEL_STUDIO)")
    rng = np.random.default_rng(1)
    masks = [rng.random((h, w)) < p for h, w, p in ((5, 9, 0.5), (33, 20, 0.1), (64, 48, 0.9))]
    masks[1][10:20, 3:15] = True
    np.savez(tmp_path / "masks.npz", *masks)
    script = (
        "import sys, json, numpy as np\n"
        "from label_studio_sdk.converter.brush import mask2rle, decode_rle\n"
        "masks = np.load(sys.argv[1])\n"
        "codes = [mask2rle((masks[n] * 255).astype(np.uint8)) for n in masks]\n"
        "alpha = [decode_rle(c).reshape(-1, 4)[:, 3].tolist() for c in codes]\n"
        "print(json.dumps([[list(map(int, c)) for c in codes], alpha]))\n"
    )
    done = subprocess.run(
        [str(python), "-c", script, str(tmp_path / "masks.npz")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    codes, alphas = json.loads(done.stdout.splitlines()[-1])
    for mask, code, alpha in zip(masks, codes, alphas, strict=True):
        height, width = mask.shape
        decoded = decode_brush(code, width, height)
        np.testing.assert_array_equal(decoded, mask)
        np.testing.assert_array_equal(decoded, np.reshape(alpha, mask.shape) > 0)


def test_a_filled_in_form_becomes_an_answer() -> None:
    size = {"original_width": 200, "original_height": 100}
    box = {
        "from_name": "label", **size,
        "value": {"x": 10, "y": 50, "width": 25, "height": 50, "rectanglelabels": ["car"]},
    }  # fmt: skip
    assert answer_of([box], "boxes", CLASSES) == (
        boxes_text((100, 200), [("car", 20.0, 50.0, 50.0, 50.0)]), "",
    )  # fmt: skip
    passed = {"from_name": "passed", "value": {"choices": ["cannot tell"]}}
    choice = {"from_name": "label", "value": {"choices": ["tree"]}}
    assert answer_of([passed], "class", CLASSES) == (None, "cannot tell")
    assert answer_of([choice], "class", CLASSES) == ("tree", "")
    assert answer_of([], "labels", CLASSES) == ([], "")
    for form, kind in (([passed, choice], "class"), ([], "class"), ([], "masks")):
        with pytest.raises(DataError):
            answer_of(form, kind, CLASSES)  # type: ignore[arg-type]
    turned = {**box, "value": {**box["value"], "rotation": 3}}
    with pytest.raises(DataError, match="rotated"):
        answer_of([turned], "boxes", CLASSES)
