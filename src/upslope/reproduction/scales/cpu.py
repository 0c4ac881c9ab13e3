"""Small networks on small data, for two cores."""

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


def cpu(reading: Reading) -> Scale:
    """Small networks on what is at hand, for two cores; `--dry-run` says how long it will take."""
    fashion = {"name": "fashion-mnist", "limit": 3000, "test_limit": 2000}
    budgets = experiment(reading)
    # Batches that leave no last one of a few samples, which would unsettle BatchNorm for a cycle.
    training = {"epochs": 12, "batch_size": 50, "lr": 0.05}
    uneven = {**training, "batch_size": 64}
    quick: Document = {"steps": 100, "width": 8}
    main: Document = {
        "data": fashion,
        "model": {"name": "cnn-small", "width": 16},
        "task": {"name": "classification", "augmentation": "flip-crop", "pad": 2},
        "strategies": strategies(
            f"random core-gcn core-set vaal ll4al sraal {EXPECTED} {ENTROPY}",
            reading,
            vaal=quick,
            sraal=quick,
        ),
        "seeds": 3,
        "workers": 3,  # a seed each; with fewer cores they take turns
        "full_data": 3,
        "experiment": {**budgets, "keep_models": "all"},
        "training": training,
    }
    some: Document = {
        **main,
        "strategies": strategies(f"random core-set ll4al {EXPECTED} {ENTROPY}", reading),
        "seeds": 2,
        "full_data": 1,
        "experiment": budgets,
    }
    two = strategies(f"random {ENTROPY}", reading)
    short: Document = {
        **some,
        "strategies": two,
        "full_data": 0,
        "experiment": {**budgets, "cycles": 5},
    }
    volumes: Document = {
        **short,
        "data": {
            "name": "cryoet-simulated",
            "classes": "1aon, 1bxn, 1f4a, 2cg9, 3cf3, 3j9i, 4cr2, 4v4r_30S",
            "train": 400,
            "test": 250,
            "box": 16,
            "voxel": 20.0,
            "resolution": 40.0,
        },
        "model": {"name": "resnet-small-3d"},
        "task": {"name": "classification", "augmentation": "half-turns"},
        "training": {"epochs": 15, "batch_size": 20, "lr": 0.05},
    }
    return Scale(
        "cpu",
        reading,
        named(
            main=(main, None),
            main_dropout=(with_dropout(main, reading, 100), None),
            main_other_start=(other_start(main, reading), None),
            cifar10=(
                {
                    **some,
                    "data": {"name": "cifar10", "limit": 2000, "test_limit": 1000},
                    "task": {"name": "classification", "augmentation": "flip-crop", "pad": 4},
                },
                None,
            ),
            digits=(
                {
                    **some,
                    "data": {"name": "digits"},
                    "task": {"name": "classification", "augmentation": "shift", "pad": 1},
                },
                None,
            ),
            imbalanced=({**some, "training": uneven}, "imbalanced"),
            tiny_imagenet=(
                {
                    **short,
                    "data": {"name": "tiny-imagenet-32", "limit": 16_000, "test_limit": 5000},
                    "task": {"name": "classification", "augmentation": "flip-crop", "pad": 4},
                },
                "forty-classes",
            ),
            camvid=(
                {
                    **short,
                    "data": {"name": "camvid", "limit": 200, "test_limit": 60},
                    "model": {"name": "dilated-small", "width": 16},
                    "task": {"name": "segmentation", "crop": 120, "flip": True, "scale": 1.5},
                    "experiment": {
                        **budgets,
                        "cycles": 4,
                        "candidates": "all",
                        "score_batch": 16,
                    },
                    "training": {
                        "epochs": 12,
                        "batch_size": 10,
                        "optimizer": "adam",
                        "lr": 0.003,
                        "weight_decay": 1e-4,
                    },
                },
                None,
            ),
            volumes=(volumes, None),
            noisy_volumes=({**volumes, "data": {**volumes["data"], "snr": 0.05}}, None),
        ),
        figure_1=(("cifar10",), ("main", "main-dropout"), ("imbalanced",), ("digits",)),
        figure_2=(("tiny-imagenet",), ("camvid",)),
        figure_4=(("volumes",), ("noisy-volumes",)),
        class_wise="imbalanced",
        deeper={"name": "resnet-small"},
        theory=Theory(
            train=300,
            test=1000,
            candidates=500,
            damping=0.1,
            tolerance=0.01,
            iterations=100,
            seeds=2,
        ),
    )
