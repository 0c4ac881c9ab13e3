"""Splits of map-style data sets: torch's, torchvision's, lists; held in memory or streamed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from upslope import datasets
from upslope.datasets import Splits
from upslope.errors import ConfigError, DataError

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (16, 6, 5, 3), dtype=np.uint8)
Y = np.arange(16) % 3


class Items(Dataset):
    """What `item` gives, for n positions."""

    def __init__(self, item, n=16, **attributes):
        self.item, self.n = item, n
        self.read = 0
        vars(self).update(attributes)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        self.read += 1
        return self.item(i)


def picture(i):
    return Image.fromarray(IMAGES[i])


ITEMS = {
    "tuples of pictures": lambda i: (picture(i), int(Y[i])),
    "mappings of pictures": lambda i: {"image": picture(i), "label": Y[i]},
    "arrays": lambda i: (IMAGES[i], np.int64(Y[i])),
    "tensors": lambda i: (torch.tensor(IMAGES[i]).permute(2, 0, 1), torch.tensor(Y[i])),
    "lists": lambda i: [IMAGES[i], [Y[i]]],
}


@pytest.mark.parametrize("memory", [4.0, 0.0])
@pytest.mark.parametrize("kind", ITEMS)
def test_items_of_every_kind(kind, memory):
    splits = Splits.from_torch(Items(ITEMS[kind]), Items(ITEMS[kind], 9), memory=memory)
    everything = range(16)
    expected = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    assert torch.equal(splits.pool.inputs(everything), expected)
    assert torch.equal(splits.pool.targets(everything), torch.tensor(Y))
    assert splits.pool.input_shape == (3, 6, 5)
    assert splits.pool.classes == ("0", "1", "2")
    assert len(splits.test) == 9
    assert datasets.class_counts(splits.pool) == {"0": 6, "1": 5, "2": 5}
    assert splits.pool.resident == (memory > 0)


def test_a_tensor_data_set():
    x, y = torch.randn(16, 4), torch.tensor(Y)
    splits = Splits.from_torch(TensorDataset(x, y), ids=[f"row {i}" for i in range(16)])
    assert torch.equal(splits.pool.inputs([3, 1]), x[[3, 1]])
    assert splits.pool.ids[2] == "row 2"
    assert len(splits.test) == 0
    shared = Splits.from_torch(TensorDataset(x, y), test_share=0.25)
    assert (len(shared.pool), len(shared.test)) == (12, 4)


def test_names_of_classes_and_ids():
    items = Items(lambda i: {"x": [float(i)], "label": "abc"[Y[i]], "file": f"{i}.jpg"})
    splits = Splits.from_torch(items, id="file")
    assert splits.pool.classes == ("a", "b", "c")
    assert splits.pool.ids[5] == "5.jpg"
    known = Items(lambda i: (IMAGES[i], int(Y[i])), classes=["x", "y", "z", "w"])
    assert Splits.from_torch(known).pool.classes == ("x", "y", "z", "w")
    without = Splits.from_torch(Items(lambda i: IMAGES[i]), classes=["x", "y"])
    assert datasets.wants_people(without.pool)
    some = Splits.from_torch(Items(lambda i: (IMAGES[i], None if i < 4 else int(Y[i]))))
    assert datasets.wants_people(some.pool)
    with pytest.raises(DataError, match="pool-00001"):
        some.pool.targets([1])


def test_streamed_targets_come_from_the_list_that_the_data_set_has():
    items = Items(lambda i: (IMAGES[i % 16], int(Y[i % 16])), 1000, targets=np.resize(Y, 1000))
    splits = Splits.from_torch(items, memory=0)
    assert items.read < 100
    assert torch.equal(splits.pool.targets([999, 5]), torch.tensor([Y[999 % 16], Y[5]]))
    wrong = Items(lambda i: (IMAGES[i % 16], int(Y[i % 16])), 1000, targets=[0] * 1000)
    splits = Splits.from_torch(wrong, memory=0)
    assert wrong.read >= 1000  # the list is another thing: the items say
    assert torch.equal(splits.pool.targets([1, 2]), torch.tensor([1, 2]))


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_numbers_and_masks(memory):
    prices = Items(lambda i: (IMAGES[i], i / 2))
    numbers = Splits.from_torch(prices, kind="numbers", memory=memory).pool
    assert torch.equal(numbers.targets([3, 4]), torch.tensor([[1.5], [2.0]]))
    masks = RNG.integers(0, 2, (16, 6, 5))
    pairs = Items(lambda i: (picture(i), Image.fromarray(masks[i].astype(np.uint8))))
    segmented = Splits.from_torch(pairs, kind="masks", memory=memory, classes=["a", "b"]).pool
    assert torch.equal(segmented.targets([3, 4]), torch.tensor(masks[[3, 4]]).byte())


def test_pictures_of_several_sizes_are_brought_to_one():
    items = Items(lambda i: (picture(i).resize((5 + i % 2, 6)), int(Y[i])))
    with pytest.raises(DataError, match=r"item 1 .* \(3, 6, 5\), as the first one, .* `size`"):
        Splits.from_torch(items)
    assert Splits.from_torch(items, size=4).pool.input_shape == (3, 4, 4)
    grey = Splits.from_torch(items, size=4, mode="L").pool
    assert grey.input_shape == (1, 4, 4)


class Stream(IterableDataset):
    def __iter__(self):
        yield IMAGES[0]


class Unsized(Dataset):
    def __getitem__(self, i):
        return IMAGES[i]


def changing(i):
    return torch.randn(3), 0


def mixed(i):
    return picture(i).convert("L" if i < 3 else "RGB"), int(Y[i])


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (Unsized(), {}, ConfigError, "Unsized has none"),
        (Stream(), {}, ConfigError, "only be gone through"),
        (DataLoader(Items(ITEMS["arrays"])), {}, ConfigError, "loader.dataset"),
        (Items(ITEMS["arrays"], 0), {}, DataError, "empty"),
        (Items(changing), {}, DataError, "random transform"),
        (Items(mixed), {}, DataError, "grey, as the first image"),
        (Items(lambda i: ("text", 0)), {}, DataError, "Splits.from_table"),
        (Items(lambda i: (IMAGES[i], 0, 1)), {}, ConfigError, "tuples of 3"),
        (Items(lambda i: {"a": IMAGES[i]}), {}, ConfigError, "input='...'"),
        (Items(lambda i: {"x": IMAGES[i], "y": 1}), {"input": "z"}, DataError, "to have 'z'"),
        (Items(ITEMS["arrays"]), {"size": 4}, ConfigError, "`size`, `mode` and `white`"),
        (Items(lambda i: (IMAGES[i], float(i))), {}, DataError, "classes"),
        (Items(lambda i: (IMAGES[i], [0, 1])), {}, DataError, "classes"),
        (Items(lambda i: IMAGES[i]), {}, DataError, "or `classes`, the names"),
        (Items(lambda i: (IMAGES[i][:, : 4 + i // 9], 0)), {}, DataError, r"item 9 .* \(3, 6, 5\)"),
        (Items(lambda i: (np.full(3, np.nan), 0)), {}, DataError, "NaN"),
        (Items(lambda i: (IMAGES[i + 9], 0)), {}, DataError, "item 8 .* IndexError"),
    ],
)
def test_what_cannot_be_is_refused(data, options, error, message):
    with pytest.raises(error, match=message):
        Splits.from_torch(data, **options)


@pytest.mark.parametrize("memory", [4.0, 1e-9])
def test_items_of_another_type_than_the_first_are_refused(memory):
    # In a batch of both, whole numbers would be taken for floats that are normalised already.
    data = Items(lambda i: (IMAGES[i] if i != 9 else IMAGES[i] / np.float32(255), int(Y[i])))

    def read_all():
        splits = Splits.from_torch(data, test_share=0.3, memory=memory)
        for part in (splits.pool, splits.test):
            part.inputs(range(len(part)))

    with pytest.raises(DataError, match=r"pool.*9.* to be of uint8, as the first one, but got flo"):
        read_all()


def test_what_items_hold_beside_input_and_target_is_told():
    def item(i):
        return {"image": IMAGES[i], "category": int(Y[i]), "name": str(i)}

    splits = Splits.from_torch(Items(item), classes=["a", "b", "c"])
    assert "Left out 2 keys of the items: 'category', 'name'." in splits.notes
    splits = Splits.from_torch(Items(item), target="category", id="name")
    assert not any("Left out" in note for note in splits.notes)
    tuples = Items(lambda i: (IMAGES[i], str(i), int(Y[i])))
    splits = Splits.from_torch(tuples, input=0, target=-1)
    assert "Left out 1 place of the items: '1'." in splits.notes


def test_ids_of_masks_that_are_streamed_are_those_of_the_items():
    def item(i):
        return {"image": IMAGES[i], "mask": np.full((6, 5), i % 2), "name": f"n{i}"}

    for memory in (4.0, 0.0):
        splits = Splits.from_torch(
            Items(item), kind="masks", classes=["a", "b"], id="name", memory=memory
        )
        assert tuple(splits.pool.ids) == tuple(f"n{i}" for i in range(16))
        assert splits.pool.targets([0, 1]).unique().tolist() == [0, 1]
