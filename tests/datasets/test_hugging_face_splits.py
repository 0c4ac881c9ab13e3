"""Data sets of Hugging Face in memory are read as those that it saved."""

from __future__ import annotations

import inspect
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from upslope import datasets, query
from upslope.datasets import Splits
from upslope.errors import ConfigError, DataError

hf = pytest.importorskip("datasets", reason="datasets is not installed")
if not hasattr(hf, "DatasetDict"):
    pytest.skip("datasets is not installed", allow_module_level=True)

RNG = np.random.default_rng(0)
FEATURES = {"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"])}


def _png():
    stream = io.BytesIO()
    Image.new("RGB", (5, 6)).save(stream, "PNG")
    return stream.getvalue()


PNG = _png()


def pictures(count):
    return [Image.fromarray(RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)) for _ in range(count)]


def rows(count):
    columns = {"image": pictures(count), "label": [i % 2 for i in range(count)]}
    return hf.Dataset.from_dict(columns, features=hf.Features(FEATURES))


def test_images_as_from_disk(tmp_path):
    held = hf.DatasetDict(train=rows(12), test=rows(6))
    held.save_to_disk(tmp_path)
    of_file = datasets.load("hf", tmp_path)
    given = Splits.from_hugging_face(held)
    for one, other in ((given.pool, of_file.pool), (given.test, of_file.test)):
        everything = range(len(one))
        assert one.classes == other.classes == ("cat", "dog")
        assert torch.equal(one.inputs(everything), other.inputs(everything))
        assert torch.equal(one.targets(everything), other.targets(everything))


def test_texts():
    features = hf.Features(sentence=hf.Value("string"), label=hf.ClassLabel(names=["bad", "good"]))
    labels = [-1 if i == 3 else i % 2 for i in range(20)]
    one = hf.Dataset.from_dict(
        {"sentence": [f"word{i} is here" for i in range(20)], "label": labels}, features=features
    )
    splits = Splits.from_hugging_face(
        hf.DatasetDict(train=one, validation=one.filter(lambda row: row["label"] >= 0)),
        text="sentence",
    )
    assert splits.pool.classes == ("bad", "good")
    assert len(splits.pool) == 20
    assert len(splits.test) == 19
    assert splits.pool.labels[3] == -1
    assert splits.pool.targets([4, 5]).tolist() == [0, 1]
    assert splits.pool.input_shape == (2, 3)
    shared = Splits.from_hugging_face(one, text="sentence")
    assert len(shared.pool) + len(shared.test) == 20


def test_one_data_set_is_divided():
    data = rows(20)
    splits = Splits.from_hugging_face(data, test_share=0.25)
    assert (len(splits.pool), len(splits.test)) == (15, 5)
    again = Splits.from_hugging_face(data, test_share=0.25)
    assert torch.equal(splits.test.inputs(range(5)), again.test.inputs(range(5)))


def test_a_pool_of_a_query():
    data = rows(20)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(90, 2))
    chosen = query(model, data, 4, "margin", mean=[0, 0, 0], std=[1, 1, 1])
    x = torch.tensor(np.stack([np.asarray(image) for image in data["image"]])).permute(0, 3, 1, 2)
    p = model(x / 255).softmax(1).max(1).values
    assert set(chosen.positions) == set((-p).topk(4).indices.tolist())


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match="`train` and `test`"):
        Splits.from_hugging_face(rows(4))
    with pytest.raises(ConfigError, match="`text` and `label` to name columns"):
        Splits.from_hugging_face(rows(4), text="sentence")
    with pytest.raises(ConfigError, match=r"a stream|Dataset of Hugging Face"):
        Splits.from_hugging_face(rows(4).to_iterable_dataset())
    with pytest.raises(ConfigError, match="beside test"):
        Splits.from_hugging_face(hf.DatasetDict(train=rows(4), test=rows(4)), test_share=0.5)
    columns = {"image": [p.resize((5 + i, 5)) for i, p in enumerate(pictures(4))], "label": [0] * 4}
    several = hf.Dataset.from_dict(columns, features=hf.Features(FEATURES))
    with pytest.raises(DataError, match="Set `size`"):
        Splits.from_hugging_face(several, test_share=0.5)


def _arrays(shape, count, kind="uint8"):
    feature = hf.Array2D(shape, kind) if len(shape) == 2 else hf.Array3D(shape, kind)
    features = hf.Features({"image": feature, "label": hf.ClassLabel(names=["cat", "dog"])})
    values = np.random.default_rng(count).integers(0, 256, (count, *shape)).astype(kind)
    rows = {"image": list(values), "label": [i % 2 for i in range(count)]}
    return hf.Dataset.from_dict(rows, features=features), values


@pytest.mark.parametrize("kind", ["arrow", "pandas", "numpy", "torch"])
def test_a_format_changes_nothing(kind):
    data = hf.DatasetDict({"train": _arrays((8, 9, 3), 10)[0], "test": _arrays((8, 9, 3), 6)[0]})
    values = _arrays((8, 9, 3), 10)[1]
    got = Splits.from_hugging_face(data.with_format(kind))
    assert np.array_equal(got.pool.inputs(range(10)).numpy(), values.transpose(0, 3, 1, 2))


def test_a_transform_is_refused():
    rows = _arrays((8, 9, 3), 10)[0]
    data = {"train": rows.with_transform(lambda batch: batch), "test": _arrays((8, 9, 3), 6)[0]}
    with pytest.raises(ConfigError, match="train to give its samples as they are but it has a tra"):
        Splits.from_hugging_face(data)


@pytest.mark.parametrize("shape", [(8, 9, 4), (3, 9, 3), (2, 8, 9), (1, 9, 1)])
def test_arrays_whose_channels_are_not_told_are_refused(shape):
    data = {"train": _arrays(shape, 10)[0], "test": _arrays(shape, 6)[0]}
    with pytest.raises(DataError, match="1 or 3 channels either in front or at the end"):
        Splits.from_hugging_face(data)


def test_empty_cells_among_arrays_and_arrays_of_several_sizes_are_refused():
    features = hf.Features(
        {"image": hf.Array2D((4, 4), "uint8"), "label": hf.ClassLabel(names=["cat", "dog"])}
    )
    cells = [np.zeros((4, 4), np.uint8) if i else None for i in range(6)]
    rows = hf.Dataset.from_dict({"image": cells, "label": [0, 1] * 3}, features=features)
    whole = rows.select(range(1, 6))
    with pytest.raises(DataError, match="1 of 6 have none in the column 'image'"):
        Splits.from_hugging_face({"train": rows, "test": whole})
    assert len(Splits.from_hugging_face({"train": whole, "test": whole}).pool) == 5
    features["image"] = hf.Array3D((None, 4, 3), "uint8")
    cells = [np.zeros((5 + i % 2, 4, 3), np.uint8) for i in range(6)]
    rows = hf.Dataset.from_dict({"image": cells, "label": [0, 1] * 3}, features=features)
    with pytest.raises(DataError, match="arrays of one size in the column 'image'"):
        Splits.from_hugging_face({"train": rows, "test": rows})


def test_columns_left_out_and_a_lone_validation_split_are_told():
    pool, test = _arrays((8, 9, 3), 10)[0], _arrays((8, 9, 3), 6)[0]
    pool, test = (one.add_column("taken", ["x"] * len(one)) for one in (pool, test))
    notes = Splits.from_hugging_face({"train": pool, "validation": test}).notes
    assert "Left out 1 column: 'taken'." in notes
    assert "The split validation is the test set: there is none called test." in notes


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(["NA", "cat", "dog", ""], "string"), ([float("nan"), 1.0, 0.0, None], "float64")],
)
def test_a_drawn_test_set_holds_none_that_is_unlabelled_by_a_word(labels, kind):
    features = hf.Features({"image": hf.Image(), "label": hf.Value(kind)})
    data = hf.Dataset.from_dict({"image": pictures(20), "label": labels * 5}, features=features)
    splits = Splits.from_hugging_face(data, test_share=0.4)
    assert len(splits.test) == 4
    assert (np.asarray(splits.test.labels) >= 0).all()
    assert (np.asarray(splits.pool.labels) < 0).sum() == 10


@pytest.mark.parametrize("content", [b"", b"no image", None])
@pytest.mark.parametrize("at", [0, 3])
def test_advice_on_an_image_is_none_of_a_command(content, at):
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    cells = [{"bytes": picture.getvalue(), "path": None}] * 6
    cells[at] = None if content is None else {"bytes": content, "path": None}
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["a", "b"])})
    rows = hf.Dataset.from_dict({"image": cells, "label": [0, 1] * 3}, features=features)
    with pytest.raises(DataError, match=rf"train-0000{at} .*Repair or remove it\.$"):
        Splits.from_hugging_face(hf.DatasetDict({"train": rows, "test": rows}))


def _texts(labels, kind="string"):
    features = hf.Features({"text": hf.Value("string"), "label": hf.Value(kind)})
    columns = {"text": [f"word{i} is here" for i in range(len(labels))], "label": labels}
    return hf.Dataset.from_dict(columns, features=features)


def _advised_arguments(error):
    return {*re.findall(r"`(\w+)`", str(error)), *re.findall(r"\b(\w+)=", str(error))}


def test_advice_on_labels_of_texts_names_arguments_that_there_are():
    arguments = inspect.signature(Splits.from_hugging_face).parameters
    with pytest.raises(DataError, match=r"got 0\.5\.") as refusal:
        Splits.from_hugging_face(_texts([0.0, 0.5] * 10, "float64"), text="text")
    advice = _advised_arguments(refusal.value)
    assert "target" not in advice
    assert {"label"} == advice & {*arguments, "target"}
    (note,) = Splits.from_hugging_face(_texts(["a", "b", "NA"] * 10), text="text").notes
    assert _advised_arguments(note) == {"missing_labels"} < {*arguments}


@pytest.mark.parametrize("of_texts", [True, False])
def test_words_for_no_label_are_those_given(of_texts):
    labels = ["a", "b", "later", "NA"] * 5
    data, options = _texts(labels), {"text": "text"}
    if not of_texts:
        data, options = data.add_column("image", [{"bytes": PNG, "path": None}] * 20), {}
        data = data.remove_columns("text").cast_column("image", hf.Image())
    usual = Splits.from_hugging_face(data, test_share=0.2, **options)
    assert usual.pool.classes == ("a", "b", "later")
    splits = Splits.from_hugging_face(data, test_share=0.2, missing_labels=["later"], **options)
    assert splits.pool.classes == ("NA", "a", "b")
    assert (splits.pool.labels < 0).sum() == 5


def test_words_for_no_label_in_a_test_set_of_texts_are_refused():
    held = hf.DatasetDict(train=_texts(["a", "b"] * 5), test=_texts(["a", "b", "NA", ""]))
    with pytest.raises(DataError, match=r"2 of 4 have none\. .*another split with `test`"):
        Splits.from_hugging_face(held, text="text")
