"""The benchmark of the gradient norms: its networks, its methods, its files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

from speed import show  # noqa: E402
from speed.measure import measure  # noqa: E402
from speed.memory import peak_mib  # noqa: E402
from speed.methods import METHODS, Method, one_by_one  # noqa: E402
from speed.networks import NETWORKS  # noqa: E402

CORE = [m for m in METHODS if m.name in ("forward + backward", "one-sample loop", "upslope")]


def test_measures_checks_and_records_what_a_method_refuses(tmp_path: Path) -> None:
    def refusing(network: object, device: str) -> object:
        raise TypeError("Expected less.")

    def doubling(network: object, device: str) -> object:
        run = one_by_one(network, device)
        return lambda x: 2 * run(x)

    extra = [Method("refusing", refusing, "rival"), Method("wrong", doubling, "rival")]
    report = measure(
        "bert",
        NETWORKS["bert"],
        batch=2,
        repeats=2,
        seconds=0.01,
        device="cpu",
        methods=[*CORE, *extra],
    )
    rows = {row.method: row for row in report.rows}
    assert rows["upslope"].error_max < 1e-4
    assert rows["wrong"].error_median == pytest.approx(1, abs=1e-3)
    assert rows["refusing"].refused == "refused: TypeError: Expected less."
    assert max(report.exactness.global_norm, report.exactness.tensor_sum) < 1e-9
    assert all(row.times for row in report.rows if row.refused is None)

    show.write_json(tmp_path / "a" / "b.json", show.record([report], ["x"], "cpu"))
    written = json.loads((tmp_path / "a" / "b.json").read_text())
    found = {row["method"]: row for row in written["networks"][0]["rows"]}
    assert found["forward + backward"]["ratio_to_plain"] == 1
    assert found["upslope"]["ours_ratio_to_it"] == 1
    show.plot(tmp_path / "b.png", [report])
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_is_the_same_each_time_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = (NETWORKS["lstm"].model() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    x = NETWORKS["lstm"].inputs(3)
    assert torch.equal(x, NETWORKS["lstm"].inputs(3))


@pytest.mark.long
def test_peak_memory_counts_what_the_run_takes_and_not_what_its_parent_had() -> None:
    ballast = torch.ones(2**26)  # 256 MiB, which the process below must not be charged with
    peak = peak_mib("bert", "forward + backward", 2, 2, "cpu")
    del ballast
    # The gradient of the word table alone is 30,522 x 128 floats: 15 MiB.
    assert peak is not None
    assert 15 < peak < 200
