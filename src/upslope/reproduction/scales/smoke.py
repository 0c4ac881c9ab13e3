"""Every path in under a minute."""

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


def smoke(reading: Reading) -> Scale:
    """Digits and tiny networks: every path in under a minute, no figure worth reading."""
    digits = {"name": "digits", "limit": 200, "test_limit": 100}
    budgets = experiment(reading, budget=0.15, cycles=3)
    training = {"epochs": 4, "batch_size": 16, "lr": 0.05}
    quick: Document = {"steps": 3, "width": 4}
    main: Document = {
        "data": digits,
        "model": {"name": "cnn-small", "width": 4},
        "task": {"name": "classification", "augmentation": "shift", "pad": 1},
        "strategies": strategies(
            f"random core-gcn core-set vaal ll4al sraal {EXPECTED} {ENTROPY}",
            reading,
            vaal=quick,
            sraal={**quick, "latent": 8},
        ),
        "seeds": 2,
        "full_data": 2,
        "experiment": {**budgets, "keep_models": "all"},
        "training": training,
    }
    two = strategies(f"random {ENTROPY}", reading)
    few: Document = {
        **main,
        "strategies": two,
        "seeds": 1,
        "full_data": 0,
        "experiment": {**budgets, "cycles": 2},
    }
    cut = {
        **few,
        "strategies": strategies(f"random {EXPECTED} {ENTROPY}", reading),
        "experiment": budgets,
    }
    volumes = {
        **few,
        "data": {**digits, "limit": 80, "test_limit": 40},
        "model": {"name": "resnet-small-3d", "width": 4},
        "task": {"name": "classification", "augmentation": "none"},
    }
    masks = {
        **few,
        "data": {**digits, "limit": 80, "test_limit": 40},
        "model": {"name": "dilated-small", "width": 4},
        "task": {"name": "segmentation", "crop": 8},
    }
    return Scale(
        "smoke",
        reading,
        named(
            main=(main, None),
            main_dropout=(with_dropout(main, reading, 10), None),
            main_other_start=(other_start(main, reading), None),
            imbalanced=(cut, "imbalanced"),
            digits_mlp=({**few, "model": {"name": "mlp", "hidden": 16}}, None),
            masks=(masks, "masks"),
            volumes=(volumes, "volumes"),
            noisy_volumes=(volumes, "noisy-volumes"),
        ),
        figure_1=(("main", "main-dropout"), ("imbalanced",)),
        figure_2=(("digits-mlp",), ("masks",)),
        figure_4=(("volumes",), ("noisy-volumes",)),
        class_wise="imbalanced",
        deeper={"name": "mlp", "hidden": 16, "layers": 3},
        theory=Theory(train=60, test=50, candidates=60, iterations=30, seeds=1),
    )
