"""What decoding changes is told with counts, and so are images that are there twice."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from upslope import datasets
from upslope.datasets import image_duplicates

RNG = np.random.default_rng(0)


def photograph(side=32):
    """Smooth colours that differ from any other call's."""
    small = Image.fromarray(RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                photograph().save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def notes(root, **options):
    return datasets.load("folder", root, **options).notes


def test_nothing_is_told_where_nothing_changes(root):
    assert notes(root) == ()
    assert notes(root, duplicates="near", memory=0) == ()


def test_conversions_are_counted(root):
    a = root / "train/a"
    photograph().convert("CMYK").save(a / "0.png".replace("png", "tif"))
    photograph().convert("L").save(a / "1.png")
    see_through = photograph().convert("RGBA")
    see_through.putalpha(Image.new("L", see_through.size, 90))
    see_through.save(a / "2.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    photograph().save(a / "3.png", exif=exif)
    told = " ".join(notes(root))
    assert "1 of 17 images are converted to RGB without a colour profile (1 CMYK)." in told
    assert "1 of 17 images are grey, repeated in three channels (1 L). For example 1.png." in told
    assert "1 of 17 images can be transparent in part, and are laid over white." in told
    assert "1 of 17 images are turned as their EXIF data say. For example 3.png." in told
    told = " ".join(notes(root, mode="L"))
    assert "16 of 17 images are in colour and brought to grey (1 CMYK, 14 RGB, 1 RGBA)" in told


def test_colour_profiles_that_are_not_applied_are_counted(root):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photograph().save(root / "train/a/0.png", icc_profile=srgb)
    assert notes(root) == ()
    photograph().save(root / "train/a/1.png", icc_profile=srgb.replace(b"sRGB", b"Wide"))
    wide = srgb.replace("sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be"))
    photograph().save(root / "train/a/1.png", icc_profile=wide.replace(b"sRGB", b"Wide"))
    (told,) = notes(root)
    assert told.startswith("1 of 16 images have a colour profile other than sRGB, which is not ")


def test_notes_count_the_images_that_are_read(root):
    photograph().convert("L").save(root / "train/a/1.png")
    broken = root / "train/a/2.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="Left out 1 of"):
        told = notes(root, on_error="skip")
    assert told == (
        "1 of 15 images are grey, repeated in three channels (1 L). For example 1.png.",
    )


def test_crops_and_enlargements_are_counted(root):
    for i in range(2):
        photograph(64).crop((0, 0, 64, 40)).save(root / f"train/a/{i}.png")
    told = " ".join(notes(root, size=32))
    assert told.count("of 16 images") == 1
    assert told.startswith("2 of 16 images are of another shape than `data.size` asks for")
    assert "16 of 16 images are smaller" in " ".join(notes(root, size=65))


def test_equal_files(root, monkeypatch):
    for copy in ("test/a/0", "train/a/3", "train/b/0"):
        data = (root / "train/a/0.png").read_bytes()
        (root / f"{copy}.png").write_bytes(data)
    within, across, label = notes(root)
    assert within.startswith(
        "2 images of the pool are copies, byte for byte, of others of it, such as "
        "'train/a/3.png' of 'train/a/0.png'."
    )
    assert across.startswith(
        "1 image of the test set is a copy, byte for byte, of an image of the pool, such as "
        "'test/a/0.png' of 'train/a/0.png': figures come out too good."
    )
    assert label.startswith(
        "2 images are copies, byte for byte, of images of another class, such as 'train/b/0.png' "
        "of 'train/a/0.png'"
    )
    assert notes(root, duplicates="off") == ()
    assert notes(root, duplicates="exact") == (within, across, label)
    assert notes(root, memory=0) == (within, across, label)  # decoded in no time
    monkeypatch.setattr(image_duplicates, "MOST_STREAMED_BYTES", 0)
    *exact, skipped = notes(root, memory=0)
    assert tuple(exact) == (within, across, label)
    assert "set `data.duplicates` to near" in skipped


@pytest.mark.parametrize("memory", [4.0, 0.0], ids=["held", "streamed"])
@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.point(lambda level: round(level * 0.9 + 8)),
        lambda image: image.convert("L"),
        lambda image: image.resize((20, 20)).resize((32, 32)),
    ],
    ids=["brightness", "grey", "resized"],
)
def test_near_copies(root, change, memory):
    with Image.open(root / "train/a/0.png") as image:
        change(image).save(root / "test/a/2.png")
    told = " ".join(notes(root, memory=memory, duplicates="near"))
    assert (
        "1 image of the test set is a near copy of an image of the pool, such as 'test/a/2.png' of "
        "'train/a/0.png'" in told
    )
    assert told.count("near cop") == 1
    assert "near cop" not in " ".join(notes(root, duplicates="exact"))


def test_flat_images_are_near_nothing(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (8, 8), (i, 9, 40 * (name == "a"))).save(tmp_path / name / f"{i}.png")
    assert notes(tmp_path, duplicates="near") == ()


def test_near_copies_are_those_of_a_plain_double_loop(monkeypatch):
    """By every pair compared on its own, of images with a few near ones among them."""
    monkeypatch.setattr(image_duplicates, "_CHUNK", 7)
    base = [np.asarray(photograph(), dtype=np.int64) for _ in range(20)]
    noisy = [np.clip(p + RNG.integers(-9, 9, p.shape), 0, 255) for p in base[:9]]
    images = np.stack([*base, *noisy]).astype(np.uint8).transpose(0, 3, 1, 2)
    order = RNG.permutation(len(images))
    images, labels = images[order], RNG.integers(-1, 2, len(images))
    names = [f"{i}" for i in range(len(images))]
    parts = {
        part: datasets.npz.build_dataset(
            "x", images[rows], labels[rows], "ab", source="x", ids=names[rows]
        )
        for part, rows in (("pool", slice(0, 18)), ("test set", slice(18, None)))
    }
    samples = [
        image_duplicates._Sample("pool" if i < 18 else "test set", name, int(label), None)
        for i, (name, label) in enumerate(zip(names, labels, strict=True))
    ]
    expected = set()
    for b in range(len(images)):
        for rule in (
            lambda a: a < 18,
            lambda a: a >= 18,
            lambda a, b=b: -1 not in labels[[a, b]] and labels[a] != labels[b],
        ):
            near = (a for a in range(b) if rule(a) and correlation(images[a], images[b]) >= 0.995)
            expected |= {(b, a) for a in list(near)[:1]}
    found = image_duplicates._near(parts, samples, [], lambda _: None)
    assert {tuple(pair) for pair in found} == expected
    assert len(expected) >= 9


def grey_of(image):
    red, green, blue = image.astype(float)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def correlation(a, b):
    small = [
        torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(grey_of(x))[None], 16)
        for x in (a, b)
    ]
    return float(np.corrcoef(small[0].flatten(), small[1].flatten())[0, 1])


def test_grey_levels_with_transparency_are_no_colours(root):
    for path in root.glob("*/*/*.png"):
        photograph().convert("LA").save(path)
    told = " ".join(notes(root, mode="L"))
    assert "in colour" not in told
    assert "16 of 16 images can be transparent in part" in told
    assert "16 of 16 images are grey, repeated in three channels (16 LA)" in " ".join(notes(root))
