"""The paper's own networks and data."""

from __future__ import annotations

from upslope.reproduction.scales.declare import (
    ENTROPY,
    EXPECTED,
    Document,
    Reading,
    Scale,
    Theory,
    experiment,
    named,
    other_start,
    strategies,
    with_dropout,
)


def paper(reading: Reading) -> Scale:
    """The paper's protocol (A.5, A.8), for a GPU."""
    budgets = experiment(reading)
    training = {
        "epochs": 200,
        "batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "milestones",
        "milestones": [160],
        "gamma": 0.1,
    }
    names = f"random core-gcn core-set vaal ll4al sraal {EXPECTED} {ENTROPY}"
    full: Document = {
        "vaal": {"steps": 39062, "width": 128},
        "sraal": {"steps": 20000, "latent": 200, "width": 128},
    }
    main: Document = {
        "data": {"name": "cifar10"},
        "model": {"name": "resnet18-cifar"},
        "task": {"name": "classification", "augmentation": "flip-crop", "pad": 4},
        "strategies": strategies(names, reading, **full),
        "seeds": 3,
        "full_data": 3,
        "experiment": {**budgets, "keep_models": "all"},
        "training": training,
    }
    others = {**main, "experiment": budgets}
    cifar100 = {**others, "data": {"name": "cifar100"}}
    svhn = {**others, "data": {"name": "svhn"}}
    caltech = {
        **others,
        "data": {"name": "caltech101", "size": 224},
        "task": {"name": "classification", "augmentation": "flip-crop", "pad": 28},
        "model": {"name": "resnet18"},
        "training": {**training, "epochs": 50, "batch_size": 64, "lr": 0.01, "milestones": [40]},
    }
    imagenet = {
        **others,
        "data": {"name": "imagenet", "size": 224},
        "task": {"name": "classification", "augmentation": "flip-crop", "pad": 28},
        "model": {"name": "vgg16"},
        "experiment": {**budgets, "cycles": 5, "score_batch": 64},
        "seeds": 2,
        "full_data": 1,
        "training": {
            "epochs": 100,
            "batch_size": 64,
            "optimizer": "adam",
            "lr": 0.1,
            "weight_decay": 0,
            "schedule": "constant",
        },
    }
    cityscapes = {
        **others,
        "data": {"name": "cityscapes"},
        "model": {"name": "drn-d-22"},
        "task": {"name": "segmentation", "crop": 688, "flip": True},
        "strategies": strategies(f"random ll4al qbc {ENTROPY}", reading),
        "experiment": {**budgets, "score_batch": 1},
        "full_data": 0,
        "training": {
            "epochs": 50,
            "batch_size": 8,
            "optimizer": "adam",
            "lr": 1e-4,
            "weight_decay": 0,
            "schedule": "constant",
        },
    }
    volumes = {
        **others,
        "model": {"name": "resnet18-3d"},
        "task": {"name": "classification", "augmentation": "half-turns"},
        "experiment": {**budgets, "score_batch": 64},
        "training": {**training, "epochs": 100, "milestones": [80]},
    }
    return Scale(
        "paper",
        reading,
        named(
            main=(main, None),
            main_dropout=(with_dropout(main, reading, 1000), None),
            main_other_start=(other_start(main, reading), None),
            cifar100=(cifar100, None),
            cifar100_dropout=(with_dropout(cifar100, reading, 1000), None),
            svhn=(svhn, None),
            svhn_dropout=(with_dropout(svhn, reading, 1000), None),
            caltech101=(caltech, None),
            caltech101_dropout=(with_dropout(caltech, reading, 1000), None),
            imagenet=(imagenet, None),
            cityscapes=(cityscapes, None),
            clean=({**volumes, "data": {"name": "50c-clean"}}, None),
            snr005=({**volumes, "data": {"name": "50c-snr005"}}, None),
        ),
        figure_1=(
            ("main", "main-dropout"),
            ("cifar100", "cifar100-dropout"),
            ("svhn", "svhn-dropout"),
            ("caltech101", "caltech101-dropout"),
        ),
        figure_2=(("imagenet",), ("cityscapes",)),
        figure_4=(("clean",), ("snr005",)),
        class_wise="svhn",
        deeper={"name": "resnet50-cifar"},
        theory=Theory(train=5000, candidates=10_000),
    )
