"""Tables of the user's own: columns to vectors, answers of three kinds, splits, faults."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from upslope import datasets
from upslope.errors import ConfigError, DataError

COLOURS = ("red", "blue", "green")
HEADER = "id,height,colour,member,label\n"


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def table(tmp_path, n=40):
    """Heights 0..n-1, three colours, a class of two."""
    rows = [f"p{i},{i},{COLOURS[i % 3]},{i % 2},{'ab'[i % 2]}" for i in range(n)]
    return written(tmp_path / "people.csv", HEADER + "\n".join(rows) + "\n")


def everything(splits, part):
    dataset = getattr(splits, part)
    return dataset.inputs(range(len(dataset))), dataset.targets(range(len(dataset)))


def test_columns_become_vectors_by_the_pool_alone(tmp_path):
    splits = datasets.load("table", table(tmp_path))
    assert (len(splits.pool), len(splits.test)) == (32, 8)
    assert splits.pool.classes == ("a", "b")
    assert splits.pool.input_shape == (5,)  # height, three colours, member
    x, y = everything(splits, "pool")
    assert x.dtype == torch.float32
    numbers = np.array([int(i[1:]) for i in splits.pool.ids])
    np.testing.assert_allclose(x[:, 0], (numbers - numbers.mean()) / numbers.std(), atol=1e-6)
    colours = np.stack([numbers % 3 == k for k in (1, 2, 0)], axis=1)  # blue, green, red
    np.testing.assert_array_equal(x[:, 1:4], colours)
    np.testing.assert_array_equal(y, numbers % 2)
    x, _ = everything(splits, "test")
    tested = np.array([int(i[1:]) for i in splits.test.ids])
    np.testing.assert_allclose(x[:, 0], (tested - numbers.mean()) / numbers.std(), atol=1e-6)


def test_a_folder_of_train_and_test_in_every_format(tmp_path):
    csv = tmp_path / "csv"
    csv.mkdir()
    written(csv / "train.csv", "a,b,label\n1,x,3\n2,y,5\n3,x,3\n")
    written(csv / "test.csv", "a,b,label\n2,z,5\n")
    rows = {"train": {"a": [1, 2, 3], "b": ["x", "y", "x"], "label": [3, 5, 3]},
            "test": {"a": [2], "b": ["z"], "label": [5]}}  # fmt: skip
    parquet, lines, tsv = (tmp_path / name for name in ("parquet", "lines", "tsv"))
    for folder in (parquet, lines, tsv):
        folder.mkdir()
    for name, columns in rows.items():
        pq.write_table(pa.table(columns), parquet / f"{name}.parquet")
        cells = list(zip(*columns.values(), strict=True))
        text = "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in cells)
        written(lines / f"{name}.jsonl", text)
        written(
            tsv / f"{name}.tsv", "a\tb\tlabel\n" + "\n".join("\t".join(map(str, r)) for r in cells)
        )
    for folder in (csv, parquet, lines, tsv):
        splits = datasets.load("table", folder)
        assert splits.pool.ids == ("train-00000", "train-00001", "train-00002")
        assert splits.test.ids == ("test-00000",)
        assert splits.pool.classes == ("3", "5")
        x, y = everything(splits, "test")
        assert x.tolist() == [[0.0, 0.0, 0.0]]  # a at its mean; the pool has no z
        assert y.tolist() == [1]


def test_split_column_empty_labels_and_options_of_all_data_sets(tmp_path):
    path = written(
        tmp_path / "t.csv",
        "x,split,class\n" + "".join(f"{i},train,{'' if i > 5 else i % 2}\n" for i in range(9))
        + "9,test,1\n10,test,0\n",
    )  # fmt: skip
    splits = datasets.load("table", path)
    assert splits.pool.input_shape == (1,)  # the column `split` is no input
    assert (len(splits.pool), len(splits.test)) == (9, 2)
    assert splits.pool.targets([0, 5]).tolist() == [0, 1]
    with pytest.raises(DataError, match="label for 'row-00007'"):
        splits.pool.targets([7])
    held = datasets.load("table", path, validation=0.3, test_limit=1)
    assert (len(held.validation), len(held.test)) == (2, 1)


def test_numbers_and_labels(tmp_path):
    path = written(
        tmp_path / "t.csv",
        "x,price,weight,wet,dry\n"
        + "".join(f"{i},{i / 2},{i},{i % 2},1\n" for i in range(10))
        + "3,,1,0,1\n",
    )
    splits = datasets.load("table", path, target="price,weight", kind="numbers", columns="x")
    assert splits.pool.classes == ("price", "weight")
    assert splits.pool.targets([0]).dtype == torch.float32
    place = {i: (split, k) for split in (splits.pool, splits.test) for k, i in enumerate(split.ids)}
    split, k = place["row-00004"]
    assert split.targets([k]).tolist() == [[2.0, 4.0]]
    assert "row-00010" in splits.pool.ids  # a row without an answer is never tested on
    with pytest.raises(DataError, match="price, weight of 'row-00010'"):
        splits.pool.targets([list(splits.pool.ids).index("row-00010")])
    splits = datasets.load("table", path, target="wet, dry", kind="labels", columns="x")
    assert splits.pool.targets([0, 1]).dtype == torch.int64
    assert splits.pool.targets([0]).shape == (1, 2)
    with pytest.raises(DataError, match=r"0 or 1 .* got 0\.5 in `price` of 'row-00001'"):
        datasets.load("table", path, target="price", kind="labels", columns="x")


def test_empty_cells_stop_or_are_filled(tmp_path):
    path = written(tmp_path / "t.csv", "x,c,label\n" + "1,u,a\n,v,b\n3,,a\n5,u,b\n" * 5)
    with pytest.raises(
        DataError, match=r"5 of 20 rows .* in `x`, first 'row-00001'.*`data.missing`"
    ):
        datasets.load("table", path)
    splits = datasets.load("table", path, missing="fill")
    x, _ = everything(splits, "pool")
    assert splits.pool.input_shape == (5,)  # x, x is empty; c: empty, u, v
    numbers = np.array([int(i[4:]) for i in splits.pool.ids]) % 4
    known = np.array([1, np.nan, 3, 5])[numbers]
    scaled = (known - np.nanmean(known)) / np.nanstd(known)
    np.testing.assert_allclose(x[:, 0], np.nan_to_num(scaled), atol=1e-6)
    np.testing.assert_array_equal(x[:, 1], numbers == 1)
    np.testing.assert_array_equal(x[:, 2], numbers == 2)


def test_numbers_as_categories_and_a_column_that_never_changes(tmp_path):
    path = written(tmp_path / "t.csv", "k,same,label\n" + "1,7,a\n2,7,b\n" * 5)
    splits = datasets.load("table", path, categorical="k")
    assert splits.pool.input_shape == (3,)
    assert (everything(splits, "pool")[0][:, 2] == 0).all()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "x,label\n1,a\n",
            {"target": "y"},
            "`data.target` to name a column .* 'y'; it has x, label",
        ),
        ("x,y\n1,a\n", {}, "column label, class or target in .* it has 'x', 'y'"),
        ("x,label\n1,a\n2,a\n", {}, r"at least 2 classes .* \['a'\]"),
        ("x,label\n1,0.5\n2,0.25\n", {}, r"got 0\.5\. Set `data.kind` to numbers"),
        ("x,label\n1,a\n2,b\n", {"target": "x,label"}, "names 2: x, label. Set `data.kind`"),
        ("x,label\n1,a\n2,b\n", {"kind": "numbers"}, "numbers in the column `label`"),
        ("x,label\n1,a\n2,b\n", {"columns": "z"}, "`data.columns` to name a column"),
        ("x,label\n1,a\n2,b\n", {"id": "z"}, "`data.id` to name a column"),
        ("id,label\n1,a\n2,b\n", {}, "columns of inputs"),
        ("id,x,label\nq,1,a\nq,2,b\n", {}, "distinct but 'q' comes twice"),
        ("x,split,label\n1,tset,a\n2,train,b\n", {}, r"got \['tset'\]"),
        ("x,label\n1,a\n2,b,c\n", {}, r"2 cells, .* line 3 of .* has 3: '2,b,c'"),
        ("x,label\ninf,a\n2,b\n", {}, "finite numbers"),
        ("x,label\n1,a\n2,b\n", {"test_share": 0.01}, "Raise `data.test_share`"),
    ],
)
def test_faults_are_told(tmp_path, text, options, message):
    path = written(tmp_path / "t.csv", text)
    with pytest.raises((ConfigError, DataError), match=message):
        datasets.load("table", path, **{"test_share": 0.5, **options})


def test_folders_that_are_not_one_table(tmp_path):
    with pytest.raises(DataError, match="got none"):
        datasets.load("table", tmp_path)
    written(tmp_path / "train.csv", "x,label\n1,a\n")
    written(tmp_path / "test.csv", "x,answer\n1,a\n")
    with pytest.raises(DataError, match="answer, label are in one alone"):
        datasets.load("table", tmp_path)
    with pytest.raises(DataError, match=r"file of \.csv.* but got"):
        datasets.load("table", written(tmp_path / "t.txt", "x"))


def test_ids_that_fill_a_column_are_no_categories(tmp_path):
    text = "name,label\n" + "".join(f"n{i},{i % 2}\n" for i in range(1300))
    with pytest.raises(DataError, match="at most 1000 categories in the column `name`"):
        datasets.load("table", written(tmp_path / "t.csv", text))


@pytest.mark.parametrize(("name", "sizes", "shape"), [
    ("breast-cancer", (427, 142), (30,)),
    ("diabetes", (332, 110), (10,)),
])  # fmt: skip
def test_tables_of_scikit_learn(name, sizes, shape):
    splits = datasets.load(name)
    assert (len(splits.pool), len(splits.test)) == sizes
    assert splits.pool.input_shape == shape
    x, y = everything(splits, "pool")
    np.testing.assert_allclose(x.mean(dim=0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(dim=0, correction=0), 1, atol=1e-5)
    assert len(y) == sizes[0]
    assert not set(splits.pool.ids) & set(splits.test.ids)


@pytest.mark.parametrize(
    ("name", "values"),
    [("Split", ("train", "test")), ("set", ("Train", "Test")), ("partition", ("training", "val")),
     ("is_test", (0, 1)), ("IsTrain", ("True", "False")), ("in_test_set", (0, 1))],
)  # fmt: skip
def test_a_column_that_says_what_to_test_on_by_another_name_is_refused(tmp_path, name, values):
    """Its rows to test on would be in the pool, and what it says among the inputs."""
    rows = [f"{i},{'ab'[i % 2]},{values[i % 5 == 0]}" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join([f"x,label,{name}", *rows, ""]))
    with pytest.raises(DataError, match=rf"the column `{name}` .* to be called `split`"):
        datasets.load("table", root=tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["fold", "Fold_id", "cv-fold", "kfold", "partition"])
def test_a_column_of_folds_is_an_input_and_is_pointed_at(tmp_path, name):
    rows = [f"{i},{'ab'[i % 2]},{i % 5}" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join([f"x,label,{name}", *rows, ""]))
    told = [f"The column `{name}` is an input as the others are" in note
            for note in datasets.load("table", root=tmp_path / "t.csv").notes]  # fmt: skip
    assert told.count(True) == 1
    alone = datasets.load("table", root=tmp_path / "t.csv", columns="x")
    assert not any("divides nothing" in note for note in alone.notes)


@pytest.mark.parametrize(
    ("name", "values"), [("way", ("train", "bus")), ("set", ("train", "train")), ("test", (0, 1))]
)
def test_other_columns_say_nothing_of_splits(tmp_path, name, values):
    rows = [f"{i},{'ab'[i % 2]},{values[i % 5 == 0]}" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join([f"x,label,{name}", *rows, ""]))
    assert len(datasets.load("table", root=tmp_path / "t.csv").test) == 6
