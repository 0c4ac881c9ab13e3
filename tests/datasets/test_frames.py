"""Tables in memory are read as files that hold the same."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from upslope import datasets
from upslope.datasets import Splits
from upslope.errors import ConfigError, DataError

COLUMNS = {
    "size": [float(i % 7) for i in range(40)],
    "town": ["Ulm", "Bonn"] * 20,
    "label": ["low", "high", "high", None] * 10,
}


def same(one: Splits, other: Splits) -> None:
    for a, b in ((one.pool, other.pool), (one.test, other.test)):
        assert a.ids == b.ids
        assert a.classes == b.classes
        assert torch.equal(a.inputs(range(len(a))), b.inputs(range(len(b))))
        known = [i for i, label in enumerate(a.labels) if label != -1]
        assert torch.equal(a.targets(known), b.targets(known))
        assert (a.labels == b.labels).all()


def frames():
    yield "mapping", lambda columns: columns
    yield "arrow", pa.table
    yield "batch", lambda columns: pa.RecordBatch.from_pydict(columns)
    yield "pandas", lambda columns: pytest.importorskip("pandas").DataFrame(columns)
    yield "polars", lambda columns: pytest.importorskip("polars").DataFrame(columns)


FRAMES = dict(frames())


@pytest.fixture(params=FRAMES)
def frame(request):
    return FRAMES[request.param]


def test_columns(frame, tmp_path):
    pq.write_table(pa.table(COLUMNS), tmp_path / "t.parquet")
    of_file = datasets.load("table", tmp_path / "t.parquet")
    given = Splits.from_table(frame(COLUMNS))
    same(given, of_file)
    assert "10 of 40 rows are unlabelled" in str(given)
    assert "data." not in str(given)


def test_texts(frame, tmp_path):
    texts = {"review": [f"word{i % 5} and more" for i in range(40)], "label": COLUMNS["label"]}
    pq.write_table(pa.table(texts), tmp_path / "t.parquet")
    of_file = datasets.load("text", tmp_path / "t.parquet", text="review", length=2)
    given = Splits.from_table(frame(texts), text="review", length=2)
    same(given, of_file)
    assert "raise `length`" in str(given)


def test_a_test_set_of_its_own(frame):
    rows = {name: values[:8] for name, values in COLUMNS.items()}
    rows["label"] = ["low", "high"] * 4
    splits = Splits.from_table(frame(COLUMNS), frame(rows), columns=["size"])
    assert (len(splits.pool), len(splits.test)) == (40, 8)
    assert splits.pool.input_shape == (1,)


def test_numbers_and_label_sets(frame):
    columns = {
        **COLUMNS,
        "price": [i / 2 for i in range(40)],
        "new": [0, 1] * 20,
        "old": [1, 1] * 20,
    }
    splits = Splits.from_table(frame(columns), target="price", kind="numbers", columns=["size"])
    place = int(splits.pool.ids[3].removeprefix("row-"))
    assert splits.pool.targets([3]) == place / 2
    sets = Splits.from_table(frame(columns), target=["new", "old"], kind="labels", columns=["size"])
    assert sets.pool.classes == ("new", "old")
    assert sets.pool.targets([0]).tolist()[0][1] == 1


def test_the_index_of_pandas_is_kept_as_ids():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(COLUMNS, index=[f"house {i}" for i in range(40)])
    splits = Splits.from_table(frame)
    assert splits.pool.ids[0].startswith("house ")
    assert "The index of the table is taken as ids." in splits.notes
    part = Splits.from_table(pandas.DataFrame(COLUMNS)[5:35])
    assert set(part.pool.ids) | set(part.test.ids) == {str(i) for i in range(5, 35)}
    counted = Splits.from_table(pandas.DataFrame(COLUMNS))
    assert counted.pool.ids[0].startswith("row-")


BARE = {"size": [1.0, 2.0, None] * 5, "label": ["a", "b", "a"] * 5}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Splits.from_table([1, 2]), ConfigError, "a mapping of columns but got list"),
        (lambda: Splits.from_table({"x": [1, "a"], "label": [0, 1]}), DataError, "one type each"),
        (lambda: Splits.from_table(COLUMNS, target="price"), ConfigError, "`target` to name"),
        (lambda: Splits.from_table(BARE), DataError, "Set `missing` to fill"),
        (lambda: Splits.from_table(COLUMNS, text="town", kind="numbers"), ConfigError, "`kind`"),
        (lambda: Splits.from_table(COLUMNS, columns=["a,b"]), ConfigError, "`columns` .* 'a,b'"),
        (lambda: Splits.from_table({"x": [], "label": []}), DataError, "rows in the table"),
        (lambda: Splits.from_table(COLUMNS, {"size": [1.0], "label": ["low"]}),
         DataError, "town are in one alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "data." not in str(caught.value)


def test_a_column_of_intervals_is_refused_by_name() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": range(30), "label": pandas.cut(list(range(30)), 3)})
    with pytest.raises(DataError, match=r"classes in the column `label`.*got cells of type ext"):
        Splits.from_table(frame)
