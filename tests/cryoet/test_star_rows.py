"""STAR files in which a row could be taken for something else: no particle is lost."""

import pytest

from upslope.cryoet.particles import read_particles
from upslope.cryoet.star import Block, read_star, write_star
from upslope.errors import DataError

HEAD = "data_particles\n\nloop_\n_rlnTomoName #1\n_rlnCoordinateX #2\n"
PLACES = f"{HEAD}_rlnCoordinateY #3\n_rlnCoordinateZ #4\n"


def rows_of(tmp_path, text):
    path = tmp_path / "p.star"
    path.write_bytes(text.encode())
    return [block.rows for block in read_star(path)]


@pytest.mark.parametrize(
    "name",
    ["data_1.mrc", "save_1.mrc", "_a.mrc", "loop_", "loop_1.mrc", "global_1.mrc", "stop_1",
     "$a.mrc", "[b.mrc", "größe.mrc", "b#c.mrc"],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_a_row_stays_a_row_whatever_it_begins_with(tmp_path, name, first):
    rows = [("t.mrc", "1"), (name, "2"), ("t.mrc", "3")]
    rows = rows[1:] if first else rows
    text = HEAD + "".join(f"{a} {b}\n" for a, b in rows)
    assert rows_of(tmp_path, text) == [tuple(rows)]
    assert rows_of(tmp_path, text.replace("\n", "\r\n")) == [tuple(rows)]
    block = Block("particles", ("rlnTomoName", "rlnCoordinateX"), tuple(rows))
    write_star(tmp_path / "again.star", [block])  # with the quotes that other readers need
    assert read_star(tmp_path / "again.star") == [block]


def test_what_is_written_is_read_by_gemmi(tmp_path):
    cif = pytest.importorskip("gemmi").cif
    rows = [("data_1.mrc", "it's"), ("_a.mrc", 'so "called"'), ("save_x", ""), ("#3", "a b")]
    write_star(tmp_path / "p.star", [Block("p", ("x", "y"), tuple(rows))])
    loop = cif.read(str(tmp_path / "p.star"))[0].find(["_x", "_y"])
    assert [tuple(map(cif.as_string, row)) for row in loop] == rows


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"], ids=["crlf", "cr", "lf"])
def test_lines_end_in_any_way_and_values_at_blanks_of_ascii_alone(tmp_path, end):
    lines = [
        "# version 30001",
        "data_p",
        "loop_ # one",
        "_a #1",
        "_b\t#2",
        "x\u00a0y\t2 # c",
        "z 3",
    ]
    (tmp_path / "p.star").write_bytes(end.join(lines).encode())
    (block,) = read_star(tmp_path / "p.star")
    assert block.columns == ("a", "b")
    assert block.rows == (("x\u00a0y", "2"), ("z", "3"))


def test_rows_of_one_column(tmp_path):
    names = ["data_1.mrc", "data_2.mrc", "loop_x", "save_3"]
    table = "data_particles\n\nloop_\n_rlnImageName\n" + "\n".join(names)
    images = tuple((name,) for name in names)
    assert rows_of(tmp_path, table) == [images]
    optics = "\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n1\n2\n"
    assert rows_of(tmp_path, table + optics) == [images, (("1",), ("2",))]
    general = "\ndata_general\n_rlnVersion 5\n"
    assert rows_of(tmp_path, table + general) == [images, (("5",),)]
    assert rows_of(tmp_path, table + '\n"data_9"' + general)[0] == (*images, ("data_9",))


def test_quotes_comments_and_several_tables(tmp_path):
    text = (
        "# version 30001\n\n" + HEAD + "'a b.mrc' 1 # remark\n# a line of remarks\n"
        "'it's' 2\n\"c's\" 3\n5' 4\n\ndata_optics\nloop_\n_rlnOpticsGroup #1\n1\n"
        "data_general\n_rlnVersion  5\n_rlnNote 'two words'\n"
    )
    assert rows_of(tmp_path, text) == [
        (("a b.mrc", "1"), ("it's", "2"), ("c's", "3"), ("5'", "4")),
        (("1",),),
        (("5", "two words"),),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}a 1\nb\nc 3 4\n", "2 values, one per column of data_particles, but got 1, line 7"),
        (f"{HEAD}a 1\ndata_2.mrc\n", r"none in data_2\.mrc, line 7\. If it is a row that was cut"),
        (f"{HEAD}a 1\n\n_b.mrc 2\n", "quotes around a value that begins with _ .*line 8"),
        (f"{HEAD}a 1\n;b 2\n", "a row on one line but got ';b'"),
        (HEAD.replace("CoordinateX", "TomoName") + "a 1\n", "_rlnTomoName is there 2 times"),
        (f"{PLACES}t.mrc 1 2 3\n\n{PLACES}t.mrc 4 5 6\n", "one table of particles .*1 in .* and 1"),
        (
            f"{PLACES}_rlnOriginX #5\n_rlnOriginZAngst #6\nt.mrc 1 2 3 4 5\n",
            "in voxels or in angstrom",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, text, message):
    (tmp_path / "t.mrc").touch()
    (tmp_path / "p.star").write_text(text)
    with pytest.raises(DataError, match=message):
        read_particles(tmp_path / "p.star")


def test_origins(tmp_path):
    (tmp_path / "t.mrc").touch()
    path = tmp_path / "p.star"
    columns = "_rlnOriginX #5\n_rlnOriginY #6\n_rlnOriginZ #7\n"
    path.write_text(f"{PLACES}{columns}t.mrc 50 50 50 6 -4 3\nt.mrc 9 9 9 0 0 0\n")
    table = read_particles(path)
    assert [p.centre for p in table.particles] == [(44, 54, 47), (9, 9, 9)]
    assert table.notes == (
        "1 of 2 particles of p.star have origins (rlnOriginX, ...): they are taken off the "
        "coordinates, as voxels of the tomogram.",
    )
    path.write_text(path.read_text().replace("_rlnOriginZ ", "_rlnOriginZAngst "))
    with pytest.raises(DataError, match="got both, rlnOriginX and rlnOriginZAngst"):
        read_particles(path)
    path.write_text(f"{PLACES}{columns}t.mrc 50 50 50 0 0 0.0\n")
    assert read_particles(path).notes == ()
    path.write_text(f"data_\nloop_\n_rlnImageName #1\n{columns}t.mrc 1 0 0\n")
    (note,) = read_particles(path).notes
    assert "not applied" in note


def test_columns_of_a_csv_that_mean_the_same(tmp_path):
    (tmp_path / "p.csv").write_text("tomogram,x,y,z,rlnCoordinateX\nt.mrc,1,2,3,4\n")
    with pytest.raises(DataError, match="'rlnCoordinateX' is there 2 times"):
        read_particles(tmp_path / "p.csv")
