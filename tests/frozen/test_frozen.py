"""Frozen networks: features are the network's, computed once, found again by content, and safe."""

import os
import pickle
import subprocess
import sys
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

import frozen_nets
import numpy as np
import pytest
import torch
from torch import nn

from upslope.datasets import Splits, Subset
from upslope.datasets.arrays import build_dataset
from upslope.datasets.contents import content_digests
from upslope.datasets.encoded import EncodedDataset
from upslope.errors import ConfigError, DataError, ModelError
from upslope.frozen import FeatureDataset, freeze, freeze_dataset, take_backbone
from upslope.images import Form
from upslope.models import with_features
from upslope.progress import Interrupted, Progress, Stop
from upslope.tasks import Classification

CPU = torch.device("cpu")
FREEZE = import_module("upslope.frozen.freeze")


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 1, 9, 9), dtype=np.uint8)
    labels = rng.integers(0, 4, count)
    return build_dataset("noise", pixels, labels, ["a", "b", "c", "d"], source="a test")


def task_of(**options):
    return Classification(num_classes=4, mean=(0.3,), std=(0.2,), **options)


def network(**options):
    return partial(frozen_nets.make, 4, (1, 9, 9), **options)


def backbone_of(factory=None, task=None):
    return take_backbone(factory or network(), task or task_of(), CPU)


class Count:
    """An observer that counts the samples computed."""

    def __init__(self):
        self.computed = 0
        self.last = None

    def __call__(self, progress: Progress):
        if progress.phase == "features":
            if self.last is not None:
                self.computed += progress.done - self.last
            self.last = progress.done


def features_of(dataset, folder, backbone=None):
    count = Count()
    made = freeze_dataset(dataset, backbone or backbone_of(), CPU, folder, count)
    return made, count.computed


def test_features_are_those_of_the_network_in_eval_mode(tmp_path):
    dataset = images(300)
    made, computed = features_of(dataset, tmp_path)
    model = network()().eval()
    with torch.no_grad():
        _, expected = with_features(model, task_of().prepare(dataset.inputs(range(300))))
    assert computed == 300
    torch.testing.assert_close(made.inputs(range(300)), expected)
    assert made.input_shape == (20,)
    assert made.ids == dataset.ids
    assert torch.equal(made.targets([3, 7]), dataset.targets([3, 7]))
    assert torch.equal(made.inputs([7, 3, 7]), made.inputs(range(300))[[7, 3, 7]])


def test_they_are_computed_once_and_a_pool_that_grew_computes_what_is_new(tmp_path):
    first, _ = features_of(images(300), tmp_path)
    again, computed = features_of(images(300), tmp_path)
    assert computed == 0
    assert torch.equal(first.inputs(range(300)), again.inputs(range(300)))
    part, computed = features_of(Subset(images(300), [5, 290]), tmp_path)
    assert computed == 0
    assert torch.equal(part.inputs([0, 1]), first.inputs([5, 290]))
    both = np.concatenate([images(40, seed=9).images, images(300).images])
    grown = build_dataset("grown", both, np.zeros(340, int), ["a", "b"], source="a test")
    made, computed = features_of(grown, tmp_path)
    assert computed == 40
    assert torch.equal(made.inputs(range(40, 340)), first.inputs(range(300)))


def test_another_network_or_another_normalisation_has_features_of_its_own(tmp_path):
    dataset = images(20)
    made, _ = features_of(dataset, tmp_path)
    shifted, computed = features_of(dataset, tmp_path, backbone_of(network(shift=0.1)))
    assert computed == 20
    assert not torch.equal(made.inputs(range(20)), shifted.inputs(range(20)))
    darker = Classification(num_classes=4, mean=(0.1,), std=(0.2,))
    assert features_of(dataset, tmp_path, backbone_of(task=darker))[1] == 20
    assert features_of(dataset, tmp_path)[1] == 0


def test_what_no_digest_sees_is_seen_by_features_of_made_up_samples(tmp_path):
    factor = nn.Parameter(torch.ones(()), requires_grad=False)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(81, 4)

        def forward(self, x):
            return self.head(x.flatten(1) * float(factor))

    dataset = images(20)
    made, _ = features_of(dataset, tmp_path, backbone_of(Scaled))
    factor.mul_(2)
    doubled, computed = features_of(dataset, tmp_path, backbone_of(Scaled))
    assert computed == 20
    torch.testing.assert_close(doubled.inputs(range(20)), 2 * made.inputs(range(20)))
    assert features_of(dataset, tmp_path, backbone_of(Scaled))[1] == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_block_is_computed_again_with_a_warning(tmp_path, damage):
    dataset = images(300)
    made, _ = features_of(dataset, tmp_path)
    expected = made.inputs(range(300))
    block = sorted(tmp_path.glob("*/*.npy"))[0]
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 1
    block.write_bytes({"flip": content, "cut": content[:-100], "empty": b""}[damage])
    with pytest.warns(UserWarning, match="computed again"):
        again, computed = features_of(dataset, tmp_path)
    assert 0 < computed < 300
    assert torch.equal(again.inputs(range(300)), expected)


def test_a_block_that_is_damaged_after_it_was_found_is_refused(tmp_path):
    made, _ = features_of(images(20), tmp_path)
    travelled = pickle.loads(pickle.dumps(made))
    block = next(tmp_path.glob("*/*.npy"))
    content = bytearray(block.read_bytes())
    content[-40] ^= 4
    block.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        travelled.inputs([0])


def test_pickled_it_holds_paths_and_no_features(tmp_path):
    made, _ = features_of(images(300), tmp_path)
    before = len(pickle.dumps(made))
    values = made.inputs(range(300))
    assert len(pickle.dumps(made)) == before
    assert torch.equal(pickle.loads(pickle.dumps(made)).inputs(range(300)), values)


def test_a_stop_ends_between_two_batches_and_the_next_call_goes_on(tmp_path):
    stop, seen = Stop(), []

    def watch(progress):
        seen.append(progress.done)
        if progress.done >= 300:
            stop.request()

    dataset = images(600)
    with pytest.raises(Interrupted):
        freeze_dataset(dataset, backbone_of(), CPU, tmp_path, watch, stop)
    _, computed = features_of(dataset, tmp_path)
    assert computed == 600 - FREEZE.BLOCK


def test_killed_in_the_middle_it_repeats_less_than_a_block(tmp_path):
    script = Path(__file__).parent / "features_to_kill.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "FROZEN_PAUSE": "0.02", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    done = 0
    assert process.stdout is not None
    for line in process.stdout:
        done = int(line.split()[0])
        if done >= 900:
            break
    process.kill()
    process.wait()
    process.stdout.close()
    assert done >= 900
    dataset = images(2_000)
    made, computed = features_of(dataset, tmp_path)
    repeated = computed - (2_000 - done)
    # What the process did between its last line and its end is on the disk or not.
    assert computed <= 2_000 - 768
    assert repeated <= FREEZE.BLOCK
    with torch.no_grad():
        model = network()().eval()
        _, expected = with_features(model, task_of().prepare(dataset.inputs(range(2_000))))
    torch.testing.assert_close(made.inputs(range(2_000)), expected)
    assert not list(tmp_path.glob("*/*.part"))


def test_weights_that_begin_at_random_are_refused_by_name():
    factory = partial(frozen_nets.untrained, 4, (1, 9, 9))
    with pytest.raises(ConfigError, match=r"convolution\.weight, convolution\.bias of Small begin"):
        take_backbone(factory, task_of(), CPU)


def test_a_head_with_given_weights_begins_with_them(tmp_path):
    whole = network()()
    given = freeze(
        Splits(images(20), images(5, 1)), task_of(), lambda: whole, folder=tmp_path, progress=False
    )
    assert torch.equal(given.head().weight, whole.head.weight)
    new = freeze(
        Splits(images(20), images(5, 1)), task_of(), network(), folder=tmp_path, progress=False
    )
    assert not torch.equal(new.head().weight, new.head().weight)


def test_the_head_on_features_is_the_whole_network_on_images(tmp_path):
    whole, dataset = network()().eval(), images(50)
    made = freeze(
        Splits(dataset, images(5, 1)), task_of(), lambda: whole, folder=tmp_path, progress=False
    )
    with torch.no_grad():
        expected = whole(task_of().prepare(dataset.inputs(range(50))))
        got = made.head()(task_of().prepare(made.splits.pool.inputs(range(50))))
    torch.testing.assert_close(got, expected)


def test_augmentation_and_views_are_refused():
    for options in ({"augmentation": "shift"}, {"views": "flip"}):
        with pytest.raises(ConfigError, match=r"task\.(augmentation|views) to be none"):
            freeze(Splits(images(5), images(5)), task_of(**options), network(), progress=False)


def test_a_head_at_every_position_is_refused(tmp_path):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(9, 4)
            nn.init.ones_(self.head.weight)

        def forward(self, x):
            return self.head(x[:, 0])

    with pytest.raises(ModelError, match="one vector per sample"):
        features_of(images(5), tmp_path, backbone_of(Positions))


def test_samples_that_cannot_be_read_are_refused_when_they_are_asked(tmp_path):
    class Torn:
        name, classes, input_shape, resident = "torn", ("a", "b"), (1, 9, 9), False

        def __init__(self, dataset):
            self.dataset, self.ids, self.labels = dataset, dataset.ids, dataset.labels

        def __len__(self):
            return len(self.dataset)

        def inputs(self, indices):
            if 3 in list(indices):
                raise DataError("photograph 3 is torn")
            return self.dataset.inputs(indices)

        targets = None

    made, computed = features_of(Torn(images(10)), tmp_path)
    assert computed == 9
    with pytest.raises(DataError, match="photograph 3 is torn"):
        made.inputs([2, 3])
    whole, _ = features_of(images(10), tmp_path / "whole")
    torch.testing.assert_close(made.inputs([2, 4]), whole.inputs([2, 4]))


def test_content_decides_digests_and_ids_do_not(tmp_path):
    one = content_digests(images(30))
    assert one == content_digests(images(30))
    assert len(set(one)) == 30
    assert content_digests(Subset(images(30), [4, 2])) == [one[4], one[2]]
    changed = images(30)
    changed.images[7, 0, 0, 0] ^= 1
    differing = [a != b for a, b in zip(one, content_digests(changed), strict=True)]
    assert differing == [i == 7 for i in range(30)]


def test_a_cell_without_an_image_has_no_digest():
    """Where the source itself has nothing, as a null in Parquet."""

    def source(position):
        if position == 1:
            raise DataError("row 1 holds no image")
        return bytes([position])

    form, labels = Form("RGB", (4, 4), None), np.zeros(3, dtype=np.int64)
    dataset = EncodedDataset("cells", list("abc"), ("a",), source, labels, form, (3, 4, 4))
    assert [digest is None for digest in content_digests(dataset)] == [False, True, False]


def test_nothing_is_computed_before_it_is_asked_for(tmp_path):
    lazy = freeze(
        Splits(images(20), images(5, 1)),
        task_of(),
        network(),
        folder=tmp_path,
        progress=False,
        compute=False,
    )
    assert isinstance(lazy.splits.pool, FeatureDataset)
    assert not list(tmp_path.iterdir())
    made, _ = features_of(images(20), tmp_path)
    torch.testing.assert_close(lazy.splits.pool.inputs([3, 1]), made.inputs([3, 1]))


def test_no_warning_where_nothing_is_wrong(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features_of(images(10), tmp_path)
        features_of(images(10), tmp_path)


@pytest.mark.parametrize("place", ["header", "number", "end", "all"])
def test_damaged_features_of_made_up_samples_are_told_and_made_again(tmp_path, place):
    dataset = images(30)
    first, _ = features_of(dataset, tmp_path)
    (probe,) = tmp_path.glob("*/probe")
    sound = probe.read_bytes()
    (block,) = tmp_path.glob("*/*.npy")
    content = block.read_bytes()
    damaged = bytearray(sound if place != "all" else b"")
    if place != "all":
        damaged[{"header": 20, "number": 130, "end": -1}[place]] ^= 64
    probe.write_bytes(damaged)
    with pytest.warns(UserWarning, match="probe is damaged, .* computed again"):
        second, computed = features_of(dataset, tmp_path)
    assert computed == 30
    assert torch.equal(first.inputs(range(30)), second.inputs(range(30)))
    assert probe.read_bytes() == sound
    assert block.read_bytes() == content
    assert features_of(dataset, tmp_path)[1] == 0  # and nothing is said any more


def test_features_of_made_up_samples_of_earlier_versions_have_no_digest(tmp_path):
    features_of(images(30), tmp_path)
    (probe,) = tmp_path.glob("*/probe")
    probe.write_bytes(probe.read_bytes()[:-32])
    assert features_of(images(30), tmp_path)[1] == 0
