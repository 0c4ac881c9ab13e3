"""Masks and volumes through the whole of Algorithm 1, from a configuration, on tiny data."""

import numpy as np
import pytest
import torch
from PIL import Image

from upslope.config import assemble, check_compatible, parse, plan
from upslope.experiment import Experiment
from upslope.gradnorm import gradient_norms
from upslope.ledger import read_run


def scenes(root):
    """Bright discs on dark ground, 32x32: two classes, a ring between them ignored."""
    rng = np.random.default_rng(0)
    y, x = np.indices((32, 32))
    (root / "classes.csv").parent.mkdir(parents=True)
    (root / "classes.csv").write_text("name,id\nground,0\ndisc,1\nignore,255\n")
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for i in range(30):
        distance = np.hypot(y - rng.uniform(8, 24), x - rng.uniform(8, 24)) - rng.uniform(4, 9)
        disc = distance < 0
        mask = np.where(np.abs(distance) < 0.7, 255, disc).astype(np.uint8)
        image = np.clip(60 + 120 * disc + rng.normal(0, 25, (32, 32)), 0, 255).astype(np.uint8)
        Image.fromarray(np.stack([image] * 3, axis=2)).save(root / f"images/{i:02d}.png")
        Image.fromarray(mask).save(root / f"masks/{i:02d}.png")


def particles(root):
    """Three molecules: a rod, a ball and a ring."""
    rng = np.random.default_rng(1)
    t = rng.uniform(0, 2 * np.pi, 300)
    ring = 70 * np.stack([np.cos(t), np.sin(t), 0 * t], axis=1)
    shapes = {
        "rod": rng.normal(size=(300, 3)) * [45, 6, 6],
        "ball": rng.normal(size=(300, 3)) * 12,
        "ring": ring + rng.normal(size=(300, 3)) * 6,
    }
    arrays = {f"{k}_xyz": v.astype(np.float32) for k, v in shapes.items()}
    arrays |= {f"{k}_z": np.full(300, 6, dtype=np.uint8) for k in shapes}
    root.mkdir(parents=True)
    np.savez(root / "structures.npz", **arrays)


def document(name, root, cache):
    if name == "masks":
        scenes(root)
        return {
            "data": {"name": "mask-folder", "root": str(root), "test_share": 0.3},
            "model": {"name": "dilated-small", "width": 6},
            "task": {"name": "segmentation", "crop": 24, "flip": True, "scale": 1.2},
            "experiment": {"initial": 6, "budget": 3, "cycles": 2, "candidates": "all"},
            "training": {"epochs": 30, "batch_size": 3, "optimizer": "adam", "lr": 0.01},
        }
    particles(root)
    return {
        "data": {
            "name": "cryoet-simulated",
            "root": str(root),
            "cache": str(cache),
            "train": 60,
            "test": 30,
            "box": 16,
            "voxel": 20.0,
            "resolution": 40.0,
            "snr": 2.0,
        },
        "model": {"name": "resnet-small-3d", "width": 6},
        "task": {"name": "classification", "augmentation": "half-turns"},
        "experiment": {"initial": 24, "budget": 6, "cycles": 2, "candidates": "all"},
        "training": {"epochs": 12, "batch_size": 6, "lr": 0.05},
    }


@pytest.mark.parametrize(
    ("name", "figure", "least"),
    [
        ("masks", "miou", 0.75),
        pytest.param("volumes", "accuracy", 0.6, marks=pytest.mark.long),
    ],
)
def test_asks_trains_and_resumes(tmp_path, name, figure, least):
    config = parse(
        {
            **document(name, tmp_path / "data", tmp_path / "cache"),
            "strategies": ["entropy-gradnorm"],
            "device": "cpu",
        }
    )
    setup = assemble(config)
    assert plan(config, setup).budgets[1] > plan(config, setup).budgets[0]

    def open_run():
        return Experiment(
            tmp_path / "run",
            splits=setup.splits,
            task=setup.task,
            model=setup.model,
            strategy=setup.strategies["entropy-gradnorm"],
            settings=config.experiment,
            training=config.training,
            device="cpu",
        )

    with open_run() as experiment:
        asked = experiment.ask()
        experiment.tell(dict.fromkeys(asked))  # as the data set says
        chosen = experiment.ask()
        model = experiment.model()
    # What was asked next are the samples of the largest gradient norm, as anyone can compute.
    pool = setup.splits.pool
    rest = [i for i, id_ in enumerate(pool.ids) if id_ not in asked]
    norms = gradient_norms(model, setup.task.prepare(pool.inputs(rest)), "entropy")
    top = [rest[i] for i in torch.argsort(norms, descending=True)[: len(chosen)].tolist()]
    assert {pool.ids[i] for i in top} == set(chosen)
    with open_run() as experiment:  # opened again, it goes on
        result = experiment.run()
    figures = result.cycles[-1].metrics
    assert figures[figure] > least
    assert result.cycles[-1].n_labelled == len(asked) + len(chosen)
    assert read_run(tmp_path / "run").curve()[1][-1] == figures[figure]


@pytest.mark.long
def test_a_budget_of_boundaries_buys_masks(tmp_path):
    """QBC with the cost of Kuo et al.: as many masks as the predicted boundaries allow."""
    budget = 120.0
    config = parse(
        {
            **document("masks", tmp_path / "data", None),
            "strategies": [
                {"name": "qbc", "members": 2, "epochs": 2, "costs": "boundary",
                 "cost_budget": budget},
            ],
            "device": "cpu",
        }
    )  # fmt: skip
    setup = check_compatible(config, assemble(config))
    with Experiment(
        tmp_path / "run",
        splits=setup.splits,
        task=setup.task,
        model=setup.model,
        strategy=setup.strategies["qbc"],
        settings=config.experiment,
        training=config.training,
        device="cpu",
    ) as experiment:
        first = experiment.ask()
        experiment.tell(dict.fromkeys(first))
        chosen = experiment.ask()
        model = experiment.model()
        result = experiment.run()
    pool = setup.splits.pool
    rest = [i for i, id_ in enumerate(pool.ids) if id_ not in first]
    with torch.no_grad():
        masks = model(setup.task.prepare(pool.inputs(rest))).argmax(dim=1).numpy()
    down, across = masks[:, 1:] != masks[:, :-1], masks[:, :, 1:] != masks[:, :, :-1]
    lengths = down.sum(axis=(1, 2)) + across.sum(axis=(1, 2))
    cost = {pool.ids[i]: max(1, int(n)) for i, n in zip(rest, lengths, strict=True)}
    spent = sum(cost[i] for i in chosen)
    assert 0 < spent <= budget
    # Nothing more can be bought with what is left.
    assert all(spent + cost[i] > budget for i in cost if i not in chosen)
    assert len({*cost.values()}) > 1
    assert result.cycles[-1].n_labelled == len(first) + len(chosen)
