"""Trainings and scores by several ranks over loopback: the numbers of one process."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import rank_functions
from rank_processes import Processes, run_ranks
from upslope.errors import DataError, ModelError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")


def both(
    tmp_path: Path, size: int, *arguments: object, **settings: object
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What one process and `size` ranks train."""
    one = rank_functions.trained(None, *arguments, **settings)  # type: ignore[arg-type]
    several = run_ranks(
        size, rank_functions.trained_with, arguments, settings, folder=tmp_path / "ranks"
    )
    assert one is not None
    return one, several


@pytest.mark.parametrize(
    ("size", "resident", "augmentation", "n", "settings"),
    [
        (2, True, "shift", 51, {"momentum": 0.9}),  # 16, 16, 16 and 3: parts of 1 and 2
        (2, False, "shift", 51, {"optimizer": "adam", "lr": 1e-3}),
        (2, False, "none", 40, {"batch_statistics": "recomputed", "channels_last": True}),
        (3, True, "flip-crop", 50, {"flip": "alternate"}),  # the last batch has 2, fewer than ranks
    ],
)
def test_ranks_train_the_network_of_one_process(
    tmp_path: Path,
    size: int,
    resident: bool,
    augmentation: str,
    n: int,
    settings: dict[str, object],
) -> None:
    one, several = both(tmp_path, size, resident, augmentation, n, **settings)
    assert one.keys() == several.keys()
    begun = rank_functions.network().state_dict()
    assert (one["head.weight"] - begun["head.weight"]).abs().max() > 1e-3  # it has learnt
    for name, tensor in one.items():
        torch.testing.assert_close(
            several[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert torch.equal(several["unused.weight"], begun["unused.weight"])  # no rank decays it


@pytest.mark.parametrize(
    ("size", "names", "corrupt"),
    [
        (2, ("entropy-gradnorm", "egl", "badge", "bald"), {40}),
        (3, ("entropy-gradnorm", "egl", "badge", "bald"), {40}),
        (2, ("latents",), set()),  # learnt by rank 0
    ],
)
def test_scores_of_ranks_are_those_of_one_process_bit_for_bit(
    tmp_path: Path, size: int, names: tuple[str, ...], corrupt: set[int]
) -> None:
    arguments = (names, frozenset(corrupt))
    signals, candidates, skipped, figures = rank_functions.scored(None, *arguments)
    got = run_ranks(size, rank_functions.scored, *arguments, folder=tmp_path)
    assert got[1:] == (candidates, skipped, figures)
    assert skipped == tuple(corrupt)
    assert got[0].keys() == signals.keys()
    for need, values in signals.items():
        assert torch.equal(got[0][need], values), need


def test_the_file_of_scores_is_that_of_one_process(tmp_path: Path) -> None:
    rank_functions.scores_in_file(None, tmp_path / "one.parquet")
    run_ranks(2, rank_functions.scores_in_file, tmp_path / "two.parquet", folder=tmp_path / "ranks")
    assert pq.read_table(tmp_path / "one.parquet").equals(pq.read_table(tmp_path / "two.parquet"))


@pytest.mark.parametrize("sample", [3, 17], ids=["of rank 0", "of rank 1"])
def test_a_sample_that_one_rank_cannot_score_is_one_error(tmp_path: Path, sample: int) -> None:
    arguments = (("margin",), frozenset({sample}))
    processes = Processes(2, rank_functions.scored, *arguments, folder=tmp_path)
    assert processes.end() == [DataError.exit_code, 0]
    assert processes.output.count(f"Expected to read p{sample:04d} but it is torn.") == 1


@pytest.mark.parametrize("sample", [3, 17, 40])
def test_a_sample_that_one_rank_cannot_train_on_is_one_error(tmp_path: Path, sample: int) -> None:
    processes = Processes(2, rank_functions.trained_on_torn, sample, folder=tmp_path)
    assert processes.end() == [DataError.exit_code, 0]
    assert processes.output.count(f"Expected to read p{sample:04d} but it is torn.") == 1


def test_a_rank_with_other_data_is_refused(tmp_path: Path) -> None:
    processes = Processes(2, rank_functions.trained_on_other_data, folder=tmp_path)
    assert processes.end() == [DataError.exit_code, 0]
    assert "rank 1 found other samples than rank 0" in processes.output


def test_a_rank_with_another_network_is_refused(tmp_path: Path) -> None:
    processes = Processes(2, rank_functions.trained_on_another_network, folder=tmp_path)
    assert processes.end() == [ModelError.exit_code, 0]
    assert "rank 1 built one of other layers or settings than rank 0" in processes.output


def test_what_no_rank_can_share_is_computed_by_rank_0(tmp_path: Path) -> None:
    one = rank_functions.scored_without_pickle(None)
    processes = Processes(2, rank_functions.scored_without_pickle, folder=tmp_path)
    assert torch.equal(processes.result, one)
    assert "computed by rank 0 alone" in processes.output
