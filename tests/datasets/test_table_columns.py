"""Columns of tables: what is read as numbers, categories, classes or ids; what is refused."""

import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from upslope import datasets
from upslope.datasets import Splits
from upslope.errors import ConfigError, DataError

N = 30
LABELS = ["ab"[i % 2] for i in range(N)]


def csv(folder, header, row, encoding="utf-8"):
    """A file of N rows; row: position -> line."""
    path = folder / "t.csv"
    path.write_bytes("\n".join([header, *(row(i) for i in range(N)), ""]).encode(encoding))
    return path


def labelled(folder, cell):
    """A file with one number and a label per row; cell: position -> label."""
    return csv(folder, "x,label", lambda i: f"{i * i},{cell(i)}")


def parquet(folder, **columns):
    path = folder / "t.parquet"
    pq.write_table(pa.table({"y": [i * i for i in range(N)], **columns}), path)
    return path


def by_id(splits):
    """{id: (input, label or None)} of pool and test set."""
    found = {}
    for part in (splits.pool, splits.test):
        for k, i in enumerate(part.ids):
            label = part.labels[k]
            found[i] = part.inputs([k])[0].numpy(), None if label < 0 else part.classes[label]
    return found


def one_note(splits, *parts):
    """The one note that has all parts."""
    (note,) = (note for note in splits.notes if all(part in note for part in parts))
    return note


@pytest.mark.parametrize("word", ["NA", "nan", "n/a", "null", "None", "?", "NULL", "-", "<NA>"])
def test_words_for_missing_leave_rows_unlabelled_and_are_told(tmp_path, word):
    path = labelled(tmp_path, lambda i: word if i < 8 else LABELS[i])
    splits = datasets.load("table", path)
    assert splits.pool.classes == ("a", "b")
    unlabelled = {i for i, (_, label) in by_id(splits).items() if label is None}
    assert unlabelled == {f"row-{i:05d}" for i in range(8)}
    assert not unlabelled & set(splits.test.ids)
    assert one_note(splits, "8 of 30 rows are unlabelled", f"{word!r} (8)", "`data.missing_labels`")
    splits = datasets.load("table", path, missing_labels=[])
    assert set(splits.pool.classes) == {"a", "b", word}
    assert splits.notes == ()


def test_words_for_missing_in_columns_of_labels_and_numbers(tmp_path):
    path = labelled(tmp_path, lambda i: "N/A" if i < 8 else i / 2)
    splits = datasets.load("table", path, kind="numbers")
    assert sum(len(p.labels) - (p.labels == 0).sum() for p in (splits.pool, splits.test)) == 8
    assert one_note(splits, "8 of 30", "'N/A' (8)")
    path = labelled(tmp_path, lambda i: "?" if i < 8 else ("True", "FALSE")[i % 2])
    splits = datasets.load("table", path, kind="labels")
    place = list(splits.pool.ids).index("row-00008")
    assert splits.pool.targets([place]).tolist() == [[1]]
    path = labelled(tmp_path, lambda i: "bad" if i < 8 else i / 2)
    with pytest.raises(DataError, match=r"8 of 30 cells are no numbers, first 'bad'"):
        datasets.load("table", path, kind="numbers")


def test_classes_are_as_written(tmp_path):
    splits = datasets.load("table", labelled(tmp_path, lambda i: ("10", "9", "01")[i % 3]))
    assert splits.pool.classes == ("01", "9", "10")  # by size
    splits = datasets.load("table", labelled(tmp_path, lambda i: ("true", "false")[i % 2]))
    assert splits.pool.classes == ("false", "true")
    splits = datasets.load("table", labelled(tmp_path, lambda i: ("cat", "Cat", "cat ")[i % 3]))
    assert splits.pool.classes == ("Cat", "cat", "cat ")
    assert one_note(splits, "'Cat' and 'cat' and 'cat ' differ in how they are written alone")
    splits = datasets.load("table", labelled(tmp_path, lambda i: ("unknown", "b")[i % 2]))
    assert one_note(splits, "15 of 30 rows are of the class 'unknown'")
    with pytest.raises(DataError, match=r"one spelling of each number .* '01' and '1'"):
        datasets.load("table", labelled(tmp_path, lambda i: ("1", "01")[i % 2]))
    with pytest.raises(DataError, match=r"each of the 30 labels is there once, .* `data.kind`"):
        datasets.load("table", labelled(tmp_path, lambda i: i * 17))


@pytest.mark.parametrize(
    ("column", "classes"),
    [
        (pa.array([i % 2 for i in range(N)], pa.uint8()), ("0", "1")),
        (pa.array([2**63 + i % 2 for i in range(N)], pa.uint64()), (f"{2**63}", f"{2**63 + 1}")),
        (pa.array([None, *(float(i % 2) for i in range(1, N))]), ("0", "1")),
        (pa.array([decimal.Decimal(i % 2) for i in range(N)]), ("0", "1")),
        (pa.array([bool(i % 2) for i in range(N)]), ("False", "True")),
        (pa.array(LABELS).dictionary_encode(), ("a", "b")),
        (pa.array(LABELS, pa.large_string()), ("a", "b")),
        (pa.array([label.encode() for label in LABELS], pa.large_binary()), ("a", "b")),
    ],
)
def test_classes_of_any_type(tmp_path, column, classes):
    splits = datasets.load("table", parquet(tmp_path, label=column))
    assert splits.pool.classes == classes
    counts = [datasets.class_counts(part) for part in (splits.pool, splits.test)]
    unlabelled = column.null_count
    assert {name: sum(c[name] for c in counts) for name in classes} == {
        classes[0]: 15 - unlabelled, classes[1]: 15
    }  # fmt: skip


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[i % 2] for i in range(N)]),
        pa.array([datetime.date(2020, 1, 1 + i % 2) for i in range(N)]),
        pa.array([i % 2 + 0.5 for i in range(N)]),
    ],
)
def test_what_is_no_class_is_refused(tmp_path, column):
    with pytest.raises(DataError, match="Expected classes in the column `label`"):
        datasets.load("table", parquet(tmp_path, label=column))


def test_ids_are_as_written(tmp_path):
    ids = (
        lambda i: f"{i:04d}",
        lambda i: str(12345678901234567890 + 4096 * i),
        lambda i: f"2020-01-{i + 1:02d}",
        lambda i: f"{i}.0",
        lambda i: "NA" if i == 3 else f"{i}",
    )
    for make in ids:
        path = csv(tmp_path, "id,x,label", lambda i, make=make: f"{make(i)},{i * i},{LABELS[i]}")
        splits = datasets.load("table", path)
        assert {*splits.pool.ids, *splits.test.ids} == {make(i) for i in range(N)}
    path = csv(tmp_path, "id,x,label", lambda i: f"{i or ''},{i * i},{LABELS[i]}")
    with pytest.raises(DataError, match=r"1 of 30 have none in the column `id`, first row 1"):
        datasets.load("table", path)


def test_lists_are_no_categories(tmp_path):
    """They were numbers all the same, without a word."""
    path = parquet(tmp_path, x=[[i, 1.0] for i in range(N)], label=LABELS)
    with pytest.raises(DataError, match=r"which `data.categorical` names, but got cells of type"):
        datasets.load("table", path, categorical="x")


def test_ids_of_typed_files(tmp_path):
    lines = [{"id": f"2020-01-{i + 1:02d}", "x": i * i, "label": LABELS[i]} for i in range(N)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    splits = datasets.load("table", path)
    assert {*splits.pool.ids, *splits.test.ids} == {line["id"] for line in lines}
    lines = [{**line, "id": 2**70 + i} for i, line in enumerate(lines)]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    splits = datasets.load("table", path)
    assert {*splits.pool.ids, *splits.test.ids} == {str(2**70 + i) for i in range(N)}
    for column in (pa.array(range(N), pa.uint64()), pa.array([str(i).encode() for i in range(N)])):
        splits = datasets.load("table", parquet(tmp_path, id=column, label=LABELS))
        assert {*splits.pool.ids, *splits.test.ids} == {str(i) for i in range(N)}
        assert not any("Ids in the column" in note for note in splits.notes)
    floats = pa.array([float(i) for i in range(N)])
    splits = datasets.load("table", parquet(tmp_path, id=floats, label=LABELS))
    assert {*splits.pool.ids, *splits.test.ids} == {str(i) for i in range(N)}
    (told,) = [note for note in splits.notes if "Ids in the column" in note]
    assert told.endswith("whole numbers of type double, written without a fraction, as '0'.")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            lambda i: f'"{i},5"',
            r"30 of 30 cells are written otherwise, first '0,5'.*`data.decimal`",
        ),
        (lambda i: f'"{i + 1},500.25"', r"first '1,500\.25'\. Remove what is between thousands"),
        (lambda i: "bad" if i == 3 else i, r"29 cells are numbers and 1 not, first 'bad'"),
        (lambda i: f"2020-01-{i + 1:02d}", "dates or times, first '2020-01-01'"),
        (lambda i: f"{i + 1:02d}.01.2020", r"dates or times, first '01\.01\.2020'"),
        (lambda i: f"{i}%", "numbers with a sign or a unit, first '0%'"),
        (lambda i: f"p{i}", "nearly every row has one of its own, as 'p0'"),
        (lambda i: "", r"30 of 30 rows of .* have none in `x`"),
        (lambda i: "NA" if i == 3 else i, r"1 of 30 .* or a word for none \('NA' 1\)"),
    ],
)
def test_columns_that_are_neither_numbers_nor_categories(tmp_path, cell, message):
    path = csv(tmp_path, "x,y,label", lambda i: f"{cell(i)},{i * i},{LABELS[i]}")
    with pytest.raises(DataError, match=message):
        datasets.load("table", path)
    assert datasets.load("table", path, columns="y").pool.input_shape == (1,)
    if "numbers" in message or "dates" in message or "one of its own" in message:
        splits = datasets.load("table", path, categorical="x")
        assert one_note(splits, "Columns taken as categories", "x (")


def test_decimal_commas_are_read_with_the_option(tmp_path):
    path = csv(tmp_path, "x;label", lambda i: f"{i},5;{LABELS[i]}")
    splits = datasets.load("table", path, decimal="comma", delimiter="semicolon")
    numbers = np.array([int(i[4:]) + 0.5 for i in splits.pool.ids])
    expected = (numbers - numbers.mean()) / numbers.std()
    np.testing.assert_allclose(splits.pool.inputs(range(24))[:, 0], expected, atol=1e-6)
    assert one_note(splits, "semicolon")
    path = csv(tmp_path, "x;label", lambda i: f"{i}.5;{LABELS[i]}")
    with pytest.raises(DataError, match=r"set `data.decimal` to point"):
        datasets.load("table", path, decimal=",")
    path = csv(tmp_path, "x;label", lambda i: f"{i * i};{i},5")
    with pytest.raises(
        DataError, match=r"first '0,5' of 'row-00000'\. .*set `data.decimal` to comma"
    ):
        datasets.load("table", path, kind="numbers")
    splits = datasets.load("table", path, kind="numbers", decimal=",")
    assert splits.pool.targets([0]).tolist() == [[int(splits.pool.ids[0][4:]) + 0.5]]


def test_notes_of_inputs(tmp_path):
    path = csv(
        tmp_path,
        ",n,zip,same,c,gone,word,day,label",
        lambda i: (
            f"{i},{i + 7},0{i * i},1,{'uvw'[i % 3]},,{('None', 'x')[i % 2]},202001{i % 9 + 10},"
            f"{LABELS[i]}"
        ),
    )
    splits = datasets.load("table", path, missing="fill")
    assert splits.pool.input_shape == (4 + 3 + 2,)
    assert one_note(splits, "has no name and counts the rows from 0")
    assert one_note(splits, "`n`", "a whole number of its own in every row")
    assert one_note(splits, "`zip`", "leading zeros")
    assert one_note(splits, "`day`", "dates such as 20200110")
    assert one_note(splits, "`same` never changes")
    assert one_note(splits, "Columns taken as categories", "c (3), word (2)")
    assert one_note(splits, "`gone` is empty in every row: left out")
    assert one_note(splits, "`word`", "'None' (15)")


def test_filled_cells_and_unseen_categories_are_counted(tmp_path):
    text = "x,c,split,label\n1,u,train,a\nNA,u,train,b\n3,u,train,a\n4,v,test,b\n"
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    splits = datasets.load("table", path, missing="fill")
    assert one_note(splits, "1 of 4 cells of `x` are empty, 'NA' (1): filled with the mean")
    assert one_note(splits, "1 test row with a category in `c` that the pool has not, first 'v'")
    x = splits.pool.inputs([0, 1, 2])
    np.testing.assert_allclose(x[:, 0], [-1, 0, 1], atol=1e-6)
    assert x[:, 1].tolist() == [0, 1, 0]


def test_a_column_that_the_pool_does_not_know_is_zero_in_the_test_set_too(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y,split,label\n5,1,train,a\n5,2,train,b\n900,3,test,b\n", encoding="utf-8")
    splits = datasets.load("table", path)
    assert splits.test.inputs([0])[0, 0] == 0
    assert one_note(splits, "`x` never changes in the pool")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([[float(i), 2.0, i * i] for i in range(N)]), 3),
        (pa.array([[1, i] for i in range(N)], pa.list_(pa.float32(), 2)), 2),
        (pa.array([[1, i] for i in range(N)], pa.large_list(pa.int64())), 2),
        (pa.array([2**63 + i * 2**40 for i in range(N)], pa.uint64()), 1),
        (pa.array([decimal.Decimal(i * i) / 4 for i in range(N)]), 1),
        (pa.array(np.arange(N, dtype=np.float16) ** 2), 1),
    ],
)
def test_numbers_of_any_type(tmp_path, column, expected):
    splits = datasets.load("table", parquet(tmp_path, x=column, label=LABELS), columns="x")
    rows = [int(i[4:]) for i in splits.pool.ids]
    plain = np.array([np.array(v.as_py(), dtype=float).ravel() for v in column])
    spread = plain[rows].std(axis=0)
    scaled = (plain[rows] - plain[rows].mean(axis=0)) / np.where(spread > 0, spread, 1)
    assert splits.pool.input_shape == (expected,)
    np.testing.assert_allclose(splits.pool.inputs(range(len(rows))), scaled, atol=1e-5)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a"]] * N),
        pa.array([[1.0] * (1 + i % 2) for i in range(N)]),
        pa.array([[[1], [i]] for i in range(N)]),
        pa.array([{"a": i} for i in range(N)]),
        pa.array([datetime.date(2020, 1, 1 + i) for i in range(N)]),
        pa.array([datetime.timedelta(i) for i in range(N)]),
        pa.array([b"%d" % i for i in range(N)]),
        pa.array([str(i) for i in range(N)]),  # numbers or codes: the type says text
    ],
)
def test_inputs_that_are_no_numbers_are_refused_by_name(tmp_path, column):
    path = parquet(tmp_path, x=column, label=LABELS)
    with pytest.raises(DataError, match=r"in the column `x` of .*`data.columns`"):
        datasets.load("table", path)
    assert datasets.load("table", path, columns="y").pool.input_shape == (1,)


def test_duplicates_are_told(tmp_path):
    lines = ["1,a,train", "1,b,train", "2,a,train", "2,a,test", "3,b,test"]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["x,label,split", *lines]), encoding="utf-8")
    splits = datasets.load("table", path)
    assert one_note(splits, "1 of 2 test rows", "first 'row-00003' as 'row-00002'")
    assert one_note(splits, "1 of 3 pool rows repeat", "first 'row-00001' those of 'row-00000'")
    assert one_note(splits, "1 group of rows with the same inputs and different labels")


def test_files_of_excel_and_other_encodings(tmp_path):
    path = csv(tmp_path, "größe;label", lambda i: f"{i * i};{LABELS[i]}", "utf-16")
    assert one_note(datasets.load("table", path, columns="größe"), "semicolon")
    path = csv(tmp_path, "sep=;\ngröße;label", lambda i: f"{i * i};{LABELS[i]}", "utf-8-sig")
    assert datasets.load("table", path, columns="größe").pool.input_shape == (1,)
    path = csv(tmp_path, "größe,label", lambda i: f"{i * i},{LABELS[i]}", "cp1252")
    with pytest.raises(DataError, match=r"byte 0xf6 at offset 2, line 1, .*`data.encoding`"):
        datasets.load("table", path)
    splits = datasets.load("table", path, encoding="cp1252", columns="größe")
    assert splits.pool.input_shape == (1,)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_count_from_the_first_of_the_file_where_excel_names_the_delimiter(tmp_path, end):
    path = tmp_path / "t.csv"
    lines = ["sep=;", "x;label", *(f"{i};{LABELS[i]}" for i in range(N))]
    path.write_bytes(end.join([*lines, "1;a;b"]).encode())
    with pytest.raises(DataError, match=f"line {len(lines) + 1} of .* has 3"):
        datasets.load("table", path)
    path.write_bytes(end.join([*lines, '1;"a']).encode())
    with pytest.raises(DataError, match=f"reading it failed in line {len(lines) + 1}: "):
        datasets.load("table", path)
    path.write_bytes(end.join(lines).encode())
    assert datasets.load("table", path).pool.classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("x,x,label\n1,2,a\n", {}, "'x' is there twice"),
        ("x,,label\n1,2,a\n", {}, "column 2 has none"),
        ('x,label\n1,"a\n2,b\n', {}, "reading it failed in line 3: unexpected end of data"),
        ('x,label\n1,"a \\"b\\" c"\n2,b\n', {}, "reading it failed in line 2"),
        ("x;y,z;label\n1;2,3;a\n", {}, r"several cut its lines evenly: comma \(2 columns\)"),
        (
            "x,label\n1,a\n",
            {"delimiter": "ab"},
            r"`data.delimiter` to be comma, .* or one character but got 'ab'",
        ),
        ("x,label\n1,a\n", {"encoding": "latin-99"}, "`data.encoding` to be an encoding"),
    ],
)
def test_faults_of_csv_files_are_told(tmp_path, text, options, message):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((ConfigError, DataError), match=message):
        datasets.load("table", path, **options)


def test_files_that_are_not_read_are_named(tmp_path):
    for name in ("train", "test", "valid"):
        (tmp_path / f"{name}.csv").write_text(
            "x,label\n" + "".join(f"{i * i + len(name)},{LABELS[i]}\n" for i in range(N)),
            encoding="utf-8",
        )
    splits = datasets.load("table", tmp_path)
    assert one_note(splits, "Not read", "valid.csv")
    (tmp_path / "train.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"one table in .* but got .*train\.csv, train\.jsonl"):
        datasets.load("table", tmp_path)
    with pytest.raises(ConfigError, match=r"`data.delimiter` for \.csv and \.tsv files alone"):
        datasets.load("table", tmp_path / "train.jsonl", delimiter=";")


def test_targets_among_the_inputs(tmp_path):
    path = csv(tmp_path, "x,code,label", lambda i: f"{i * i},{'uv'[i % 2]},{LABELS[i]}")
    assert one_note(datasets.load("table", path), "`code` has one value per class")
    with pytest.raises(ConfigError, match=r"`data.columns` to name inputs alone but got 'label'"):
        datasets.load("table", path, columns="x,label")


def test_names_of_columns_as_text_or_as_a_list_are_one_value(tmp_path):
    path = csv(
        tmp_path,
        'a,"b, c",d,code,wet,dry',
        lambda i: f"{i * i},{i**3},{-(i**2)},{i % 3},{i % 2},{(i + 1) % 2}",
    )
    common = {"target": "wet,dry", "kind": "labels"}

    def inputs(**options):
        splits = datasets.load("table", path, **{**common, **options})
        return splits.pool.inputs(range(len(splits.pool))).numpy()

    text = inputs(columns="a, d,code", categorical="code")
    listed = inputs(columns=["a", "d", "code"], categorical=["code"], target=["wet", "dry"])
    assert text.shape[1] == 5
    np.testing.assert_array_equal(text, listed)
    assert inputs(columns=["b, c"]).shape[1] == 1  # as text, it would be two names
    with pytest.raises(ConfigError, match=r"`data.columns` to name a column .* got 'b'"):
        inputs(columns="b, c")
    given = datasets.check_options("table", {"columns": ["a", "d"], "target": ("wet", "dry")})
    assert given == {"columns": "a,d", "target": "wet,dry"}  # as recorded in runs
    assert datasets.check_options("table", {"columns": ["b, c"]}) == {"columns": ["b, c"]}
    for wrong, words in (
        (["a", "a"], "each once but got 'a' twice"),
        ([], "to name columns of inputs"),
        ("", "to name columns of inputs"),
        ([1, 2], "to be text, or a list of texts"),
        ({"a": 1}, "columns"),
    ):
        with pytest.raises(ConfigError, match=words):
            inputs(columns=wrong)
    with pytest.raises(ConfigError, match=r"one column of classes but `data.target` names 2"):
        datasets.load("table", path, target=["wet", "dry"])


def test_classes_as_text_or_as_a_list(tmp_path):
    path = labelled(tmp_path, lambda i: "")
    for names in ("cat, dog", ["cat", "dog"]):
        assert datasets.load("table", path, classes=names).pool.classes == ("cat", "dog")


def test_classes_that_are_fractions_or_dates(tmp_path):
    path = csv(tmp_path, "x;label", lambda i: f"{i * i};{i % 2},5")
    with pytest.raises(DataError, match=r"got 0\.5\. Set `data.kind` to numbers .*`data.decimal`"):
        datasets.load("table", path)
    path = labelled(tmp_path, lambda i: f"2020-01-0{i % 2 + 1}")
    assert one_note(datasets.load("table", path), "All classes are dates", "'2020-01-01'")


def test_named_classes_settle_which_words_are_classes(tmp_path):
    path = labelled(tmp_path, lambda i: ("none", "crack", "NA")[i % 3])
    splits = datasets.load("table", path, classes=["none", "crack"])
    assert splits.pool.classes == ("none", "crack")
    assert one_note(splits, "10 of 30 rows are unlabelled: their label is 'NA' (10)")
    with pytest.raises(
        DataError, match=r"among the `data.classes` \['crack', 'dent'\] .* \['none'\]"
    ):
        datasets.load("table", path, classes=["crack", "dent"], missing_labels=["NA"])
    nothing = labelled(tmp_path, lambda i: "?")
    splits = datasets.load("table", nothing, classes=["a", "b"])
    assert (len(splits.pool), len(splits.test)) == (N, 0)
    assert str(splits).splitlines()[:2] == ["pool: 30: a, b; unlabelled (30)", "test: 0: a, b"]


def test_whole_numbers_beyond_the_exact_floats_stay_apart(tmp_path):
    kinds = ((pa.uint64(), 2**63), (pa.int64(), 2**60), (pa.decimal128(30, 0), 10**25))
    for kind, least in kinds:
        numbers = [least + 3 * (i % 7) + i for i in range(40)]
        table = pa.table({"x": pa.array(numbers, kind), "label": ["a", "b"] * 20})
        pq.write_table(table, tmp_path / "t.parquet")
        csv = "\n".join(f"{n},{'ab'[i % 2]}" for i, n in enumerate(numbers))
        (tmp_path / "t.csv").write_text(f"x,label\n{csv}\n")
        for name in ("t.parquet", "t.csv"):
            splits = datasets.load("table", root=tmp_path / name)
            x = splits.pool.inputs(range(len(splits.pool))).double().numpy()[:, 0]
            rows = [int(id_[-5:]) for id_ in splits.pool.ids]
            right = np.array([numbers[i] - least for i in rows], dtype=np.float64)
            np.testing.assert_allclose(x, (right - right.mean()) / right.std(), rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1.0, 1e200, 1e300])
def test_columns_are_standardised_whatever_their_unit(tmp_path, unit):
    numbers = [unit * (1 + i / 10) for i in range(40)]
    (tmp_path / "t.csv").write_text(
        "x,label\n" + "\n".join(f"{n!r},{'ab'[i % 2]}" for i, n in enumerate(numbers))
    )
    splits = datasets.load("table", root=tmp_path / "t.csv")
    rows = np.array([int(id_[-5:]) for id_ in splits.pool.ids], dtype=np.float64)
    x = splits.pool.inputs(range(len(splits.pool))).numpy()[:, 0]
    np.testing.assert_allclose(x, (rows - rows.mean()) / rows.std(), rtol=1e-5)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([f"{i + 1}.{100 + i}" for i in range(30)], "three digits after the point in every cell"),
        (["-999" if i % 7 == 3 else i for i in range(30)], "has -999 in "),
        (["9999" if i % 7 == 3 else i / 10 for i in range(30)], "has 9999 in "),
        (
            [("Red", "red", "blue")[i % 3] for i in range(30)],
            "categories 'Red' and 'red' of `x`",
        ),
        ([("red ", "red", "blue")[i % 3] for i in range(30)], "'red' and 'red ' of `x`"),
    ],
)
def test_what_may_be_meant_otherwise_is_told(tmp_path, cells, words):
    text = "\n".join(f"{cell};{'ab'[i % 2]}" for i, cell in enumerate(cells))
    (tmp_path / "t.csv").write_text(f"x;label\n{text}\n")
    notes = datasets.load("table", root=tmp_path / "t.csv").notes
    assert any(words in note for note in notes), notes


@pytest.mark.parametrize(
    "cells",
    [
        [f"0.{100 + i}" for i in range(30)],
        [f"{i}.{100 + i}" for i in range(30)],
        [i - 1005 for i in range(30)],
        ["-999" if i == 3 else i for i in range(30)],
        ["999" if i % 7 == 3 else 100 * i for i in range(30)],
    ],
)
def test_ordinary_numbers_are_not_doubted(tmp_path, cells):
    text = "\n".join(f"{cell};{'ab'[i % 2]}" for i, cell in enumerate(cells))
    (tmp_path / "t.csv").write_text(f"x;label\n{text}\n")
    notes = datasets.load("table", root=tmp_path / "t.csv").notes
    assert not any("after the point" in note or "far from all others" in note for note in notes)


def test_categories_that_no_row_has_are_told(tmp_path):
    column = pa.DictionaryArray.from_arrays([i % 2 for i in range(N)], ["a", "b", "rare", "none"])
    path = parquet(tmp_path, x=[i * i for i in range(N)], label=column)
    for splits in (datasets.load("table", path), Splits.from_table(pq.read_table(path))):
        assert splits.pool.classes == ("a", "b")
        assert one_note(splits, "No sample has", "has 'rare', which the column states")
    splits = datasets.load("table", path, classes=["a", "b", "rare"])
    assert not any("No sample has" in note for note in splits.notes)


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_rows_with_some_of_their_targets_are_told(tmp_path, kind):
    path = csv(
        tmp_path,
        "x,u,v",
        lambda i: f"{i * i},{'' if i < 5 else i % 2},{'' if 3 <= i < 9 else i % 2}",
    )
    splits = datasets.load("table", path, target="u,v", kind=kind)
    assert (splits.pool.labels < 0).sum() == 9
    assert one_note(splits, "7 of 30 rows have some of their 2 targets and not all", "unlabelled")
    targets = np.array([[np.nan if i < 5 else 1.0, 0.0] for i in range(20)])
    if kind == "labels":
        targets = np.nan_to_num(targets, nan=-1).astype(int)
    inputs = np.arange(20.0)[:, None]
    splits = Splits.from_arrays(inputs, targets, kind=kind, test_share=0.2)
    assert one_note(splits, "5 of 20 samples have some of their 2 targets and not all")
