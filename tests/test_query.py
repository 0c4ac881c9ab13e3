"""`query` chooses what an experiment would, from whatever a program holds."""

from __future__ import annotations

from copy import deepcopy as copy
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from short_forms import mark_rest_long
from small_tasks import TASK, perceptron, splits
from upslope import (
    Experiment,
    ExperimentSettings,
    TrainingSettings,
    datasets,
    models,
    query,
    strategies,
    tasks,
)
from upslope.errors import ConfigError, DataError, ModelError, SelectionError
from upslope.strategies import REGISTRY

SETTINGS = ExperimentSettings(initial=20, budget=7, cycles=3, candidates="5x", seed=3)
TRAINING = TrainingSettings(epochs=2, batch_size=20)
QUICK = {
    "batch-bald": {"answers": 60, "passes": 10},
    "uncertain-gcn": {"steps": 10},
    "core-gcn": {"steps": 10},
    "vaal": {"steps": 4},
    "sraal": {"steps": 4},
    "qbc": {"epochs": 2},
    "emcm": {"epochs": 2, "members": 2},
    "gradnorm-diverse": {"dim": 32},
    "u-herding": {"temperature": 1},
    "refine": {"temperature": 1, "rounds": 1, "batches": 8},
    "lcmd": {"dim": 32},
    **{name: {"passes": 10} for name in ("bald", "mc-entropy", "variation-ratio", "mean-std")},
}
TRAINED_ALONG = {"ll4al"}
FOR_MASKS = {"foreground-random"}
SEES_LABELS = {"oracle"}


@pytest.fixture(scope="module")
def digits():
    loaded = datasets.load("digits", limit=120, test_limit=30)
    mean, std = datasets.statistics(loaded.pool)
    task = tasks.build(
        "classification", num_classes=10, mean=mean, std=std, classes=loaded.pool.classes
    )
    network = partial(
        models.build,
        "cnn-small",
        num_classes=10,
        input_shape=loaded.pool.input_shape,
        dropout=0.5,
    )
    return loaded, task, network


def experiment(digits, folder, strategy, shared=None):
    loaded, task, network = digits
    return Experiment(
        folder,
        splits=loaded,
        task=task,
        model=network,
        strategy=strategy,
        settings=SETTINGS,
        training=TRAINING,
        device="cpu",
        shared=shared,
    )


@pytest.mark.parametrize(
    "name",
    mark_rest_long([n for n in REGISTRY if n not in TRAINED_ALONG | FOR_MASKS | SEES_LABELS], 2),
)
def test_it_chooses_what_an_experiment_does(name, digits, tmp_path_factory, tmp_path):
    strategy = strategies.build(name, **QUICK.get(name, {}))
    shared = tmp_path_factory.getbasetemp() / "first-model"
    shared.mkdir(exist_ok=True)
    with experiment(digits, tmp_path, strategy, shared) as run:
        run.tell(dict.fromkeys(run.ask()))
        labels = {i: run.splits.pool.classes[label] for i, label in run.state.labels.items()}
        asked = run.ask()
        selected = run.state.cycles[-1]
        pool = run.splits.pool
        # The network of the cycle that selected, which `ask` trained.
        chosen = query(
            run.model(),
            run.splits.pool,
            7,
            strategy,
            labelled=labels,
            task=run.task,
            seed=3,
            candidates="5x",
        )
        # Of an array, which has neither names of classes nor labels.
        labelled_positions = {pool.ids.index(i): label for i, label in run.state.labels.items()}
        of_array = query(
            run.model(),
            pool.inputs(range(len(pool))),
            7,
            strategy,
            labelled=labelled_positions,
            task=run.task,
            seed=3,
            candidates="5x",
            layout="channels-first",
        )
    assert of_array.positions == chosen.positions
    assert chosen.ids == asked
    assert [run.splits.pool.ids[i] for i in chosen.positions] == list(asked)
    assert chosen.scores == (None if selected.scores is None else tuple(selected.scores))
    assert len(chosen.candidates) == 35


def test_later_cycles_are_chosen_alike(digits, tmp_path):
    with experiment(digits, tmp_path, strategies.build("badge")) as run:
        for _ in range(2):
            run.tell(dict.fromkeys(run.ask()))
        asked = run.ask()
        chosen = query(
            run.model(),
            run.splits,
            7,
            "badge",
            labelled=list(run.state.labels),
            task=run.task,
            seed=3,
            cycle=1,
            candidates="5x",
        )
    assert chosen.ids == asked


@pytest.mark.parametrize("name", sorted(TRAINED_ALONG))
def test_what_trains_along_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"{name} needs what is trained along"):
        query(perceptron(), torch.randn(20, 2), 3, name)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return perceptron(dropout=0.1)


X = splits(60).pool.inputs(range(60))
Y = splits(60).pool.targets(range(60))


HERDING = {"name": "u-herding", "temperature": 1}


def answer(model, pool, **options):
    return query(model, pool, 5, options.pop("strategy", HERDING), task=TASK, **options)


class Pairs:
    """A map-style data set that is none of torch's."""

    def __init__(self, dictionaries=False):
        self.dictionaries = dictionaries

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        if not 0 <= i < len(X):
            raise IndexError(i)
        return {"x": X[i], "label": int(Y[i])} if self.dictionaries else (X[i].numpy(), Y[i])


def test_the_form_of_the_pool_does_not_matter(trained):
    own = splits(60).pool
    expected = answer(trained, own, labelled=[3, 8, 21])
    assert expected.positions == tuple(own.ids.index(i) for i in expected.ids)
    forms = [X, X.numpy(), X.double(), X.tolist(), TensorDataset(X, Y), Pairs(), Pairs(True)]
    for pool in forms:
        chosen = answer(trained, pool, labelled=[3, 8, 21])
        assert chosen.positions == expected.positions, type(pool)
        assert chosen.ids == tuple(f"pool-{i:05d}" for i in chosen.positions)
        assert not set(chosen.positions) & {3, 8, 21}


def test_the_form_of_the_labels_does_not_matter(trained):
    """For a strategy that is fitted on labels: influence, which needs the targets themselves."""
    places = [2, 5, 9, 30, 31]
    classes = TASK.classes
    forms = [
        {i: int(Y[i]) for i in places},
        {i: classes[int(Y[i])] for i in reversed(places)},
        {f"p{i:04d}": Y[i] for i in places},
        places,
        np.array(places),
        set(places),
        [i in places for i in range(60)],
    ]
    chosen = [answer(trained, splits(60), strategy="isal", labelled=form) for form in forms]
    assert {one.positions for one in chosen} == {chosen[0].positions}
    items = TensorDataset(X, Y)
    of_items = answer(trained, items, strategy="isal", labelled=places)
    assert of_items.positions == chosen[0].positions


def test_labelled_samples_beside_the_pool(trained):
    rest = [i for i in range(60) if i not in (2, 5, 9)]
    within = answer(trained, X, strategy="core-set", labelled={2: 0, 5: 1, 9: 2})
    beside = [
        (X[[2, 5, 9]], [0, 1, 2]),
        TensorDataset(X[[2, 5, 9]], torch.tensor([0, 1, 2])),
    ]
    for labelled in beside:
        chosen = answer(trained, X[rest], strategy="core-set", labelled=labelled)
        assert [rest[i] for i in chosen.positions] == list(within.positions)


def test_the_task_is_read_off_the_outputs(trained):
    expected = answer(trained, X, strategy="entropy")
    chosen = query(trained, X, 5, "entropy")
    assert chosen.positions == expected.positions
    p = trained.eval()(X).softmax(1)
    entropy = -(p * p.log()).sum(1)
    assert chosen.positions == tuple(entropy.topk(5).indices.tolist())
    assert chosen.scores == pytest.approx(entropy.topk(5).values.tolist())
    assert len(chosen) == 5


def test_the_model_is_left_as_it_was():
    model = perceptron(dropout=0.5, norm=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for strategy in ("bald", "entropy-gradnorm", "qbc"):
        query(model, X, 5, strategy, labelled={0: 0, 1: 1, 2: 2, 3: 0})
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_folder_of_images(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 9, 9, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    model = nn.Sequential(nn.Flatten(), nn.Linear(243, 3))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
    chosen = query(model, tmp_path, 4, "margin", mean=mean, std=std)
    floats = (
        torch.tensor(images).permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]
    ) / (torch.tensor(std)[:, None, None])
    assert chosen.positions == query(model, floats, 4, "margin").positions
    assert chosen.ids == tuple(f"{i:02d}.png" for i in chosen.positions)
    pictures = [Image.fromarray(image) for image in images]
    assert query(model, pictures, 4, "margin", mean=mean, std=std).positions == chosen.positions
    with pytest.raises(ConfigError, match="Expected `mean` and `std`"):
        query(model, tmp_path, 4, "margin")


def test_options_of_strategies_and_candidates(trained):
    built = strategies.build("u-herding", temperature=3.0)
    chosen = answer(trained, X, strategy={"name": "u-herding", "temperature": 3.0})
    assert chosen.positions == answer(trained, X, strategy=built).positions
    few = answer(trained, X, strategy="random", candidates=9)
    assert len(few.candidates) == 9
    whole = query(trained, X, np.int64(5), HERDING, cycle=np.int32(0))
    assert whole == query(trained, X, 5, HERDING)
    assert set(few.positions) <= set(few.candidates)


class Unsized(torch.utils.data.Dataset):
    def __getitem__(self, i):
        return X[i]


def one_number():
    return nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: query("model", X), ConfigError, "torch.nn.Module but got str"),
        (lambda m: query(m, X, 61), SelectionError, "between 1 and the 60 unlabelled"),
        (lambda m: query(m, X, 60, labelled=[1]), SelectionError, "the 59 unlabelled .* got 60"),
        (lambda m: query(m, X, 5, "herding"), ConfigError, "did you mean `u-herding`"),
        (lambda m: query(m, X, 5, 7), ConfigError, "`strategy` to be a name"),
        (lambda m: query(m, "no-folder"), ConfigError, "'no-folder', which is not there"),
        (lambda m: query(m, DataLoader(TensorDataset(X))), ConfigError, "loader.dataset"),
        (lambda m: query(m, Unsized()), ConfigError, "Unsized has none"),
        (lambda m: query(m, X.long()), DataError, "uint8 .* got int64"),
        (lambda m: query(m, X[:, :1]), ModelError, r"Sequential to take a batch of shape \(2, 1\)"),
        (lambda m: query(one_number(), X), ModelError, "returns one number per sample"),
        (lambda m: query(m, X, labelled=[1, 1]), DataError, "1 of 2 repeat"),
        (lambda m: query(m, X, labelled=[60]), DataError, "from 0 to 59, but got 60"),
        (lambda m: query(m, X, labelled={"a": 1}), DataError, "ids of the pool .* got 'a'"),
        (lambda m: query(m, X, labelled={1: 3}), DataError, "between 0 and 2, but got 3"),
        (lambda m: query(m, X, labelled=[True]), DataError, "a mask of one truth value"),
        (lambda m: query(m, X, 5, "isal"), ModelError, "labelled samples"),
        (lambda m: query(m, X, 5, "qbc"), SelectionError, "for qbc, whose"),
        (lambda m: query(m, X, 5, "vaal"), SelectionError, "vaal, whose networks learn"),
        (lambda m: query(m, X, 5, "isal", labelled=[1, 2]), DataError, "Expected"),
        (lambda m: query(m, X, task="classify"), ConfigError, "Expected a task among"),
        (lambda m: query(m, X, 2.5), ConfigError, "`budget` .* whole number but got 2.5.*=50"),
        (lambda m: query(m, X, "4"), ConfigError, "`budget` .* whole number but got '4'"),
        (lambda m: query(m, X, True), ConfigError, "`budget` .* whole number but got True"),
        (lambda m: query(m, X, cycle=1.5), ConfigError, "`cycle` .* whole number but got 1.5"),
        (lambda m: query(m, X, cycle=-5), ConfigError, "`cycle`, counted from 0, but got -5"),
        (lambda m: query(m, X, task="segmentation"), ModelError, "Expected images, .* classific"),
        (lambda m: query(copy(m).double(), X), ModelError, r"float64.*model\.float\(\)"),
        (lambda m: query(copy(m).half(), X, task=TASK), ModelError, r"float16.*model\.float\(\)"),
        (lambda m: query(m, X, size=8), ConfigError, "`size` for images of Pillow"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(trained, call, error, message):
    with pytest.raises(error, match=message):
        call(trained)


def test_a_network_that_asserts_the_size_of_its_inputs_is_told() -> None:
    class Asserts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError(f"Input height ({x.shape[-1]}) doesn't match model (224).")

    with pytest.raises(ModelError, match=r"raised AssertionError: Input height \(5\)"):
        query(Asserts(), torch.rand(6, 3, 5, 5), 2, "margin", progress=False)


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    """A seed of 3.0 drew other candidates than 3; a count of NumPy was refused."""
    torch.manual_seed(0)
    network, x = nn.Linear(4, 3), torch.randn(40, 4)
    wanted = query(network, x, 3, "random", candidates=10, seed=3).ids
    assert query(network, x, 3, "random", candidates=np.int64(10), seed=3).ids == wanted
    assert query(network, x, np.int32(3), "random", candidates=10, seed=3.0).ids == wanted


def test_a_device_may_be_named_with_its_number(digits):
    loaded, task, network = digits
    model = network()
    asked = [
        query(model, loaded.pool, 5, "margin", task=task, device=device).ids
        for device in (None, "cpu", "cpu:0")
    ]
    assert asked[0] == asked[1] == asked[2]
