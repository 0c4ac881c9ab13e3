"""Tables of particles: one particle under two names."""

from upslope.cryoet.particles import read_particles


def test_particles_under_two_names_are_told(tmp_path):
    (tmp_path / "t.mrc").write_bytes(b"")
    head = "data_particles\n\nloop_\n"
    columns = "_rlnTomoName #1\n_rlnCoordinateX #2\n_rlnCoordinateY #3\n_rlnCoordinateZ #4\n"
    path = tmp_path / "p.star"
    path.write_text(f"{head}{columns}t.mrc 1 2 3\nt.mrc 1.0 2 3\nt.mrc 1 2 4\n")
    (note,) = read_particles(path).notes
    assert note.startswith(
        "1 particle of p.star is an earlier one under another name, first 't.mrc@1.0"
    )
    path.write_text(f"{head}_rlnImageName #1\n1@t.mrc\n01@t.mrc\n000001@t.mrc\n2@t.mrc\n")
    (note,) = read_particles(path).notes
    assert note.startswith(
        "2 particles of p.star are an earlier one under another name, first '01@"
    )
