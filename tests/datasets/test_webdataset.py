"""WebDataset tars: right samples, and one clear error for each archive that is not sound."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from upslope import datasets
from upslope.datasets.encoded import EncodedDataset
from upslope.errors import ConfigError, DataError, RunError


def png(level):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path, members):
    """members: (name, content) or TarInfo of a member without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def samples(start, stop, labels=(b"0", b"1")):
    return [
        member
        for i in range(start, stop)
        for member in ((f"{i:04d}.png", png(10 * i)), (f"{i:04d}.cls", labels[i % len(labels)]))
    ]


def write(root):
    pack(root / "train-000.tar", samples(0, 4))
    pack(root / "train-001.tar", samples(4, 8))
    pack(root / "test-000.tar", samples(8, 12))
    return root


def load(root, **options):
    return datasets.load("webdataset", root, **options)


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_samples_are_those_of_the_shards_held_or_streamed(tmp_path, memory):
    splits = load(write(tmp_path), memory=memory)
    assert list(splits.pool.ids) == [f"{i:04d}" for i in range(8)]
    assert list(splits.test.ids) == [f"{i:04d}" for i in range(8, 12)]
    assert splits.pool.input_shape == (3, 4, 5)
    images = splits.pool.inputs([7, 0, 5])
    assert [int(image.unique()) for image in images] == [70, 0, 50]
    assert splits.pool.targets([0, 3]).tolist() == [0, 1]
    assert isinstance(splits.pool, EncodedDataset) is (memory == 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "test-000.tar", "train-000.tar", "train-001.tar"
    ]  # fmt: skip
    if memory == 0:  # worker processes decode it too
        again = pickle.loads(pickle.dumps(splits.pool))
        assert int(again.inputs([6]).unique()) == 60


def test_shards_are_named_by_a_path_a_glob_or_a_range(tmp_path):
    write(tmp_path)
    pack(tmp_path / "a" / "x-9.tar", samples(20, 22))
    by_range = load(tmp_path, shards="train-{000..001}.tar", test_shards="test-*.tar")
    assert (len(by_range.pool), len(by_range.test)) == (8, 4)
    absolute = load(tmp_path, shards=str(tmp_path / "train-000.tar"), test_shards="a/x-9.tar")
    assert list(absolute.test.ids) == ["0020", "0021"]
    drawn = load(tmp_path / "train-000.tar", test_share=0.5)
    assert (len(drawn.pool), len(drawn.test)) == (2, 2)
    with pytest.raises(ConfigError, match=r"train-002\.tar"):
        load(tmp_path, shards="train-{000..002}.tar")
    with pytest.raises(ConfigError, match=r"named twice"):
        load(tmp_path, shards="train-*.tar", test_shards="train-001.tar")
    with pytest.raises(DataError, match=r"'a/x-9\.tar' says none"):
        load(tmp_path)


def test_a_lone_validation_split_is_the_test_set_and_told(tmp_path):
    pack(tmp_path / "train.tar", samples(0, 4))
    pack(tmp_path / "val.tar", samples(4, 6))
    splits = load(tmp_path)
    assert (len(splits.pool), len(splits.test), splits.validation) == (4, 2, None)
    assert any("validation split are the test set" in note for note in splits.notes)


def test_labels_are_names_fields_or_texts(tmp_path):
    for kind, contents in {
        "cls": (b"cat\n", b"dog"),
        "txt": (b"cat", b"dog"),
        "json": (b'{"label": "cat", "width": 4}', b'{"label": "dog"}'),
    }.items():
        members = [
            m
            for i in range(6)
            for m in ((f"d/{i}.png", png(i)), (f"d/{i}.{kind}", contents[i % 2]))
        ]
        splits = load(pack(tmp_path / f"{kind}.tar", members), test_share=0.4)
        assert splits.pool.classes == ("cat", "dog")
        for part in (splits.pool, splits.test):
            assert part.targets(range(len(part))).tolist() == [int(i[2:]) % 2 for i in part.ids]


def test_numbers_are_positions_in_the_classes_given(tmp_path):
    path = pack(tmp_path / "a.tar", samples(0, 6, (b"2", b"0")))
    splits = load(path, classes=["cat", "dog", "eel"], test_share=0.4)
    assert splits.pool.classes == ("cat", "dog", "eel")
    assert set(splits.pool.targets(range(len(splits.pool))).tolist()) == {0, 2}
    with pytest.raises(DataError, match="2"):
        load(path, classes=["cat", "dog"], test_share=0.4)


def test_of_two_labels_one_is_read_and_told(tmp_path):
    members = samples(0, 6) + [(f"{i:04d}.txt", b"yes" if i < 3 else b"no") for i in range(6)]
    path = pack(tmp_path / "a.tar", members)
    splits = load(path, test_share=0.4)
    assert splits.pool.classes == ("0", "1")
    assert any("not from .txt" in note for note in splits.notes)
    assert load(path, label="txt", test_share=0.4).pool.classes == ("no", "yes")
    with pytest.raises(ConfigError, match=r"no sample has a \.lab"):
        load(path, label="lab")
    with pytest.raises(ConfigError, match=r"data\.field"):
        load(path, label="cls", field="label")


def test_a_sample_without_label_is_unlabelled_and_named(tmp_path):
    splits = load(pack(tmp_path / "a.tar", [*samples(0, 6), ("x.png", png(9))]), test_share=0.4)
    assert splits.pool.labels[list(splits.pool.ids).index("x")] == -1
    assert any("1 sample has no label in .cls, first 'x'" in note for note in splits.notes)


def test_nothing_labelled_yet_needs_the_classes(tmp_path):
    path = pack(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(3)])
    with pytest.raises(DataError, match=r"data\.classes"):
        load(path)
    splits = load(path, classes=["cat", "dog"])
    assert (len(splits.pool), len(splits.test)) == (3, 0)
    assert (splits.pool.labels == -1).all()


def test_other_members_are_counted(tmp_path):
    members = [*samples(0, 6), ("0000.seg.png", png(1)), ("._0001.png", b"x"), ("README", b"hello")]
    splits = load(pack(tmp_path / "a.tar", members), test_share=0.4)
    told = " ".join(splits.notes)
    assert "1 member with the extension .seg.png" in told
    assert "README" in told
    assert "._0001.png" in told


def test_several_images_or_none_are_refused_by_the_name_of_the_sample(tmp_path):
    both = pack(tmp_path / "both.tar", [*samples(0, 6), ("0003.jpg", png(1))])
    with pytest.raises(DataError, match=r"'0003' of .*both\.tar.* jpg, png.*data\.image"):
        load(both)
    assert len(load(both, image="png", test_share=0.4).pool) == 4
    none = pack(tmp_path / "none.tar", [*samples(0, 6), ("x.cls", b"1")])
    with pytest.raises(DataError, match=r"1 sample has none, first 'x' of .*none\.tar"):
        load(none)
    splits = load(none, on_error="skip", test_share=0.4)
    assert "x" not in {*splits.pool.ids, *splits.test.ids}
    assert any("without an image, first 'x'" in note for note in splits.notes)


def test_keys_that_are_there_twice_are_refused(tmp_path):
    pack(tmp_path / "train-0.tar", samples(0, 2))
    pack(tmp_path / "test-0.tar", samples(1, 3))
    with pytest.raises(DataError, match=r"'0001' is in .*test-0\.tar and in .*train-0\.tar"):
        load(tmp_path)
    twice = pack(tmp_path / "b" / "twice.tar", [*samples(0, 2), ("0001.cls", b"0")])
    with pytest.raises(DataError, match=r"0001\.cls is there twice"):
        load(twice)


def link(name, target, kind):
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (link("1.png", "/etc/passwd", tarfile.SYMTYPE), "a link to '/etc/passwd'"),
        (link("1.png", "0000.png", tarfile.LNKTYPE), "a link to '0000.png'"),
        (link("1.png", "", tarfile.FIFOTYPE), "a device, a pipe"),
        (link("1.png", "", tarfile.CHRTYPE), "a device, a pipe"),
        (("../1.png", b"x"), 'has a part ".."'),
        (("a/../../1.png", b"x"), 'has a part ".."'),
        (("/tmp/1.png", b"x"), "is absolute"),
        (("C:\\1.png", b"x"), "one of Windows"),
    ],
)
def test_members_that_lead_elsewhere_are_refused(tmp_path, member, reason):
    with pytest.raises(DataError, match=reason):
        load(pack(tmp_path / "a.tar", [*samples(0, 2), member]))


@pytest.mark.parametrize("cut", [100, 512, 700, 1024, 1500, 2048, 3000])
def test_an_archive_that_is_cut_off_is_refused(tmp_path, cut):
    path = pack(tmp_path / "a.tar", samples(0, 2))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"tar archive in .*a\.tar"):
        load(path)


def test_damage_in_the_middle_is_no_end_of_the_archive(tmp_path):
    path = pack(tmp_path / "a.tar", samples(0, 2))
    content = bytearray(path.read_bytes())
    content[1024 + 148 : 1024 + 156] = b"99999999"  # the checksum of the second header
    path.write_bytes(content)
    with pytest.raises(DataError, match="no header of a member"):
        load(path)
    whole = pack(tmp_path / "b.tar", samples(0, 2)).read_bytes()
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="a second archive behind"):
        load(path)


def test_a_size_below_zero_ends_no_reading(tmp_path):
    path = pack(tmp_path / "a.tar", samples(0, 2))
    content = bytearray(path.read_bytes())
    content[124:136] = b"\xff" * 12  # -1, as GNU tar writes numbers that are no octal text
    content[148:156] = b" " * 8
    content[148:156] = f"{sum(content[:512]):06o}\0 ".encode()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar"):
        load(path)


def test_a_compressed_archive_is_refused_with_what_to_do(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match="gunzip"):
        load(tmp_path)
    with pytest.raises(DataError, match="uncompressed tar"):
        load(tmp_path / "a.tar.gz")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expected JSON"),
        (b"[" * 100_000, "Expected JSON"),
        (b"[1]", "an object with the field"),
        (b'{"name": 1}', "fields there are name"),
        (b'{"label": 1.5}', "got 1.5"),
        (b'{"label": [0, 1]}', r"got \[0, 1\]"),
        (json.dumps({"label": 10**30}).encode(), "got 1000"),
        (b'{"label": 1, "label": 0}', "a key of label is there twice"),
    ],
)
def test_json_that_names_no_class_is_refused(tmp_path, content, reason):
    path = pack(tmp_path / "a.tar", [("0.png", png(0)), ("0.json", content)])
    with pytest.raises(DataError, match=reason):
        load(path)


def test_labels_of_two_kinds_are_refused(tmp_path):
    members = [("0.png", png(0)), ("0.json", b'{"label": 1}')]
    members += [("1.png", png(0)), ("1.json", b'{"label": "cat"}')]
    with pytest.raises(DataError, match=r"got 1 and, in '1' of .*'cat'"):
        load(pack(tmp_path / "a.tar", members))


def test_a_member_over_the_read_limit_is_not_read(tmp_path):
    path = pack(tmp_path / "a.tar", [("0.png", png(0)), ("0.cls", b"0" * 5000)])
    with pytest.raises(DataError, match=r"data\.read_limit"):
        load(path, read_limit=1000 / 2**30)


def test_a_picture_that_cannot_be_decoded_names_its_shard(tmp_path):
    path = pack(tmp_path / "a.tar", [*samples(0, 4), ("x.png", b"none"), ("x.cls", b"1")])
    with pytest.raises(DataError, match="x"):
        load(path, test_share=0.4)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_archive_that_is_written_again_gives_no_other_images(tmp_path, on_error):
    splits = load(write(tmp_path), memory=0.0, on_error=on_error)
    splits.pool.inputs([0])
    pack(tmp_path / "train-000.tar", list(reversed(samples(0, 4))))  # of the same length
    with pytest.raises(RunError, match=r"train-000\.tar to stay as it was"):
        splits.pool.inputs([0])
