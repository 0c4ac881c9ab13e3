"""What is passed in place of a data set, and roots that do not exist."""

from pathlib import Path

import numpy as np
import pytest
import torch

from upslope import config, datasets
from upslope.comparison import compare
from upslope.datasets import Splits
from upslope.datasets.pools import as_pool
from upslope.errors import ConfigError, DataError
from upslope.experiment import Experiment
from upslope.labelling.samples import absolute_place, open_samples
from upslope.pools import open_pool


class Torch(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return torch.zeros(1, 8, 8), 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Torch(), "name of a data set, .* but got .*Torch, a torch Dataset"),
        (torch.utils.data.DataLoader(Torch()), "a torch DataLoader"),
        (Path("images"), r"but got pathlib\.\w+"),
        (np.zeros(3), r"but got numpy\.ndarray"),
    ],
)
def test_a_data_set_in_place_of_a_name(value, message):
    for load in (datasets.load, datasets.load_to_score):
        with pytest.raises(ConfigError, match=rf"{message}.* Splits\.from_arrays"):
            load(value)


def test_a_data_set_in_place_of_a_root():
    with pytest.raises(ConfigError, match=r"`root` to be the path .* a torch Dataset"):
        datasets.load("folder", Torch())
    with pytest.raises(ConfigError, match=r"`root` to be the path .* numpy\.ndarray"):
        datasets.load("npz", np.zeros(3))


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch):
    """As of a variable that is not set: Path('') is the folder that one happens to be in."""
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: datasets.load("folder", ""),
        lambda: datasets.load_to_score("folder", " "),
        lambda: config.load(sets=['data={name: folder, root: ""}']),
        lambda: as_pool(""),
        lambda: open_pool(""),
        lambda: open_samples("", ("a", "b")),
        lambda: absolute_place(""),
    ):
        with pytest.raises(ConfigError, match=r" to be the path .* got an empty text|but got ''"):
            call()


@pytest.mark.parametrize("name", sorted(datasets.REGISTRY))
def test_a_root_that_is_not_there(tmp_path, name):
    with pytest.raises(DataError, match=r"no such path: .*nowhere"):
        datasets.load(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (Torch(), "`splits` to be .*Splits, as datasets.load gives, but got .* a torch Dataset"),
        ((Torch(), Torch()), "`splits` to be .*Splits, .* but got tuple"),
        (Splits(Torch(), Torch()), "the pool of `splits` .* has no ids, classes, input_shape"),
        (Splits(datasets.load("digits").pool, Torch()), "the test of `splits` .* has no ids"),
    ],
)
def test_a_data_set_in_place_of_splits(tmp_path, splits, message):
    common = {"splits": splits, "task": None, "model": None}
    with pytest.raises(ConfigError, match=message):
        compare(tmp_path, strategies={}, seeds=[0], **common)
    with pytest.raises(ConfigError, match=message):
        Experiment(tmp_path, strategy=None, **common)
