"""STAR files as RELION writes them, by hand here; selections written back."""

import re
from pathlib import Path

import pytest

from upslope.cryoet.particles import read_particles, write_selection
from upslope.cryoet.star import Block, read_star, write_star
from upslope.errors import DataError

RELION = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
opticsGroup1            1   300.000000


data_particles

loop_
_rlnTomoName #1
_rlnCoordinateX #2
_rlnCoordinateY #3
_rlnCoordinateZ #4
_rlnOriginXAngst #5
_rlnClassNumber #6
_rlnComment #7
tomo/a.mrc   10.5  20 30  5.0 1 "two words"   # a remark
tomo/a.mrc   11    21 31  0.0 2 plain
tomo/b.mrc   12    22 32 -5.0 None ''

"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "tomo").mkdir()
    for name in "ab":
        (tmp_path / f"tomo/{name}.mrc").touch()
    (tmp_path / "job").mkdir()
    path = tmp_path / "job/particles.star"
    path.write_text(RELION)
    return path


def test_blocks(project, tmp_path):
    optics, particles = read_star(project)
    assert optics == Block(
        "optics",
        ("rlnOpticsGroupName", "rlnOpticsGroup", "rlnVoltage"),
        (("opticsGroup1", "1", "300.000000"),),
    )
    assert particles.column("rlnComment") == ["two words", "plain", ""]
    write_star(tmp_path / "again.star", [optics, particles])
    assert read_star(tmp_path / "again.star") == [optics, particles]
    pairs = Block("general", ("rlnTomoName", "note"), (("a", "it's 'so'"),), loop=False)
    write_star(tmp_path / "pairs.star", [pairs])
    assert read_star(tmp_path / "pairs.star") == [pairs]


def test_particles(project):
    table = read_particles(project)
    first, second, third = table.particles
    assert [p.id for p in table.particles] == [
        "tomo/a.mrc@10.5,20,30",
        "tomo/a.mrc@11,21,31",
        "tomo/b.mrc@12,22,32",
    ]
    assert first.file == project.parent.parent / "tomo/a.mrc"  # relative to the project's folder
    assert first.centre == (10.5, 20, 30)
    assert first.offset == (5, 0, 0)
    assert (first.label, second.label, third.label) == ("1", "2", "")
    assert read_particles(project, "rlnComment").particles[0].label == "two words"


def test_selection_goes_back_as_it_came(project, tmp_path):
    table = read_particles(project)
    scores = {
        "tomo/a.mrc@10.5,20,30": 0.25,
        "tomo/a.mrc@11,21,31": 1e-7,
        "tomo/b.mrc@12,22,32": 3.5,
    }
    out = tmp_path / "job/selected.star"
    write_selection(table, out, ["tomo/b.mrc@12,22,32", "tomo/a.mrc@10.5,20,30"], scores)
    optics, particles = read_star(out)
    assert optics == table.blocks[0]
    before = table.blocks[1]
    assert particles.columns == (*before.columns, "upslopeRank", "upslopeScore")
    assert particles.rows == ((*before.rows[2], "1", "3.5"), (*before.rows[0], "2", "0.25"))
    again = read_particles(out)  # and can be selected from again
    write_selection(again, out, [again.particles[1].id])
    assert read_star(out)[1].columns == (*before.columns, "upslopeRank")
    with pytest.raises(DataError, match=r"with scores but got 'x' \(1 of 1\)"):
        write_selection(table, out, ["x"], scores)


def test_csv_table(tmp_path):
    (tmp_path / "t.mrc").touch()
    path = tmp_path / "picks.csv"
    path.write_text("tomogram, x, y, z, label\nt.mrc, 1, 2, 3, ribosome\nt.mrc, 4, 5, 6,\n")
    table = read_particles(path)
    assert table.particles[0].centre == (1, 2, 3)
    assert [p.label for p in table.particles] == ["ribosome", ""]
    write_selection(table, tmp_path / "out.star", ["t.mrc@4,5,6"], {"t.mrc@4,5,6": 2.0})
    (block,) = read_star(tmp_path / "out.star")
    assert block.columns[:4] == (
        "rlnTomoName",
        "rlnCoordinateX",
        "rlnCoordinateY",
        "rlnCoordinateZ",
    )
    assert block.rows[0][-2:] == ("1", "2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RELION.replace("_rlnCoordinateZ #4", "_rlnOther #4"), r"rlnCoordinateZ, in .* but got"),
        (RELION.replace("11    21", "eleven 21"), r"coordinates but got .*eleven.*row 2"),
        (RELION.replace("11    21", "nan 21"), r"finite coordinates .*row 2"),
        (
            RELION.replace("11    21", "11"),
            r"7 values, one per column of data_particles, but got 6",
        ),
        (RELION.replace("tomo/b", "tomo/c"), r"'tomo/c\.mrc', row 3 .* missing"),
        ("image,x\na,1\n", "begins with data_"),
        ("data_particles\n", "table in .* none"),
        (
            "data_particles\n\nloop_ _rlnImageName #1\n_kind #2\na cat\n",
            "loop_ alone, in data_part",
        ),
    ],
)
def test_what_is_wrong_is_named(project, text, message):
    project.write_text(text)
    with pytest.raises(DataError, match=message):
        read_particles(project)


def test_the_same_particle_twice(project):
    project.write_text(
        "data_\nloop_\n_rlnImageName\n000001@tomo/a.mrc\n000002@tomo/a.mrc\n000001@tomo/a.mrc\n"
    )
    with pytest.raises(DataError, match=r"'000001@tomo/a\.mrc' is there in rows 1 and 3"):
        read_particles(project)
    with pytest.raises(DataError, match="the column 'kind'"):
        read_particles(project, "kind")


def test_the_code_of_the_documentation_runs(project, monkeypatch):
    page = Path(__file__).parents[2] / "docs/cryoet.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(project.parent)
    first, _, third = [p.id for p in read_particles(project).particles]
    Path("scores.csv").write_text(f'id,entropy-gradnorm\n"{first}",0.5\n"{third}",0.75\n')
    exec(compile(code, str(page), "exec"), {})
    assert [p.id for p in read_particles(Path("selected.star")).particles] == [third, first]
    assert read_star(Path("selected.star"))[1].column("upslopeScore") == ["0.75", "0.5"]
