"""Training loops of the user's own in a run: the page's examples, resuming, what is refused."""

from __future__ import annotations

import copy
import importlib.util
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from small_tasks import MODEL, TASK, splits
from upslope import (
    Experiment,
    ExperimentSettings,
    Splits,
    TrainingSettings,
    compare,
    strategies,
    tasks,
)
from upslope.errors import ConfigError, ModelError, RunError
from upslope.ledger import read_run

PAGE = (Path(__file__).parent.parent / "docs" / "own-training.md").read_text(encoding="utf-8")
SET_UP, *EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
LIBRARIES = {"sklearn": (), "transformers": ("accelerate",), "lightning": ()}
SETTINGS = ExperimentSettings(initial=12, budget=6, cycles=3, candidates="all", seed=1)


@pytest.mark.parametrize(
    ("library", "code"), list(zip(LIBRARIES, EXAMPLES, strict=True)), ids=list(LIBRARIES)
)
@pytest.mark.filterwarnings("ignore")  # of the libraries' own
def test_the_examples_of_the_page_run_and_learn(library, code, tmp_path, monkeypatch, capsys):
    for package in (library, *LIBRARIES[library]):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in (SET_UP, code):
        exec(compile(block, "own-training.md", "exec"), names)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("(("))
    labels, accuracy = eval(line)
    assert labels == (50, 100)
    assert accuracy[1] > accuracy[0] > 0.6
    assert accuracy[1] > 0.8
    folder = next(Path("runs").iterdir())
    function = f"fit_{'logistic' if library == 'sklearn' else library}"
    assert read_run(folder).config["training"] == {"trainer": f"page:{function}"}


def loop(model, labelled, context, *, steps=30, seen=None):
    """Plain steps on shuffled batches."""
    if seen is not None:
        seen.append((context.cycle, context.seed, labelled.ids, model.training))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    done = 0
    while done < steps:
        for x, y in DataLoader(labelled, batch_size=8, shuffle=True):
            loss = context.task.losses(model(x), y).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            context.report(min(done, steps), steps)
    return model


def experiment(folder, trainer, strategy="entropy-gradnorm", **options):
    return Experiment(
        folder,
        splits=splits(80),
        task=TASK,
        model=MODEL,
        strategy=strategies.build(strategy),
        settings=SETTINGS,
        trainer=trainer,
        device="cpu",
        **options,
    )


def test_the_loop_sees_the_labelled_samples_and_a_seed_of_its_own(tmp_path):
    seen = []
    with experiment(tmp_path, partial(loop, seen=seen)) as run:
        result = run.run()
        pool = run.splits.pool
    assert [cycle for cycle, *_ in seen] == [0, 1, 2]
    assert len({seed for _, seed, *_ in seen}) == 3
    assert [len(ids) for *_, ids, _ in seen] == [12, 18, 24]
    assert list(seen[2][2]) == sorted(result.labels)  # in pool order
    assert all(training for *_, training in seen)
    assert set(result.labels) <= set(pool.ids)
    assert all(cycle.train_loss > 0 for cycle in result.cycles)


def test_the_samples_are_those_of_the_pool_with_the_labels_told(tmp_path):
    def check(model, labelled, context):
        x, y = labelled.arrays()
        place = [pool.ids.index(i) for i in labelled.ids]
        assert torch.equal(torch.tensor(x), pool.inputs(place))
        assert torch.equal(torch.tensor(y), told[place])
        first = labelled[0]
        assert torch.equal(first[0], torch.tensor(x[0]))
        assert torch.equal(labelled[-1][1], torch.tensor(y[-1]))
        return loop(model, labelled, context)

    with experiment(tmp_path, check) as run:
        pool = run.splits.pool
        told = (pool.targets(range(80)) + 1) % 3  # what people say, which is not what the data say
        while ids := run.ask():
            run.tell({i: int(told[pool.ids.index(i)]) for i in ids})


def test_the_same_loop_gives_the_same_run_whatever_else_draws_random_numbers(tmp_path):
    results = []
    for name in ("one", "two"):
        torch.manual_seed(len(results))
        with experiment(tmp_path / name, loop) as run:
            results.append(run.run())
    one, two = ([c.model_sha256 for c in result.cycles] for result in results)
    assert one == two


class Killed(BaseException):
    pass


def test_a_run_killed_in_a_training_goes_on_with_that_training(tmp_path):
    with experiment(tmp_path / "whole", loop) as run:
        whole = run.run()

    def killed(model, labelled, context):
        loop(model, labelled, context, steps=3)
        if context.cycle == 1:
            raise Killed
        return loop(model, labelled, context)

    killed.__module__, killed.__qualname__ = loop.__module__, loop.__qualname__

    def sound(model, labelled, context):
        loop(model, labelled, context, steps=3)
        return loop(model, labelled, context)

    sound.__module__, sound.__qualname__ = loop.__module__, loop.__qualname__
    with pytest.raises(Killed), experiment(tmp_path / "run", killed) as run:
        run.run()
    with experiment(tmp_path / "run", sound) as run:
        gone_on = run.run()
    with experiment(tmp_path / "other", sound) as run:
        undisturbed = run.run()
    assert gone_on.cycles[-1].model_sha256 == undisturbed.cycles[-1].model_sha256
    assert gone_on.labels == undisturbed.labels
    assert whole.initial == gone_on.initial


def test_another_module_with_the_same_weights_may_be_returned(tmp_path):
    def copied(model, labelled, context):
        return loop(copy.deepcopy(model), labelled, context)

    with experiment(tmp_path / "one", loop) as run:
        expected = run.run()
    with experiment(tmp_path / "two", copied) as run:
        assert run.run().cycles[-1].model_sha256 == expected.cycles[-1].model_sha256


def nothing(model, labelled, context):
    loop(model, labelled, context)


def wrapped(model, labelled, context):
    return nn.Sequential(model)


def diverged(model, labelled, context):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (nothing, "test_own_training:nothing .* returned nothing. End it with `return model`"),
        (lambda *_: 3, "returned int"),
        (wrapped, "same weights, but .* differ. Unwrap it"),
        (diverged, "finite weights .* hold NaN"),
    ],
)
def test_what_a_loop_may_not_return(trainer, message, tmp_path):
    with experiment(tmp_path, trainer) as run, pytest.raises(ModelError, match=message):
        run.run()


def test_layers_that_a_training_adds_are_told_before_anything_is_recorded(tmp_path):
    """Their file could never be loaded, so that the run could not be gone on with."""

    def adding(model, labelled, context):
        loop(model, labelled, context).extra = nn.Linear(2, 2)
        return model

    adding.__module__, adding.__qualname__ = loop.__module__, loop.__qualname__
    with (
        experiment(tmp_path, adding) as run,
        pytest.raises(ModelError, match=r"extra\.bias, extra"),
    ):
        run.run()
    with experiment(tmp_path, loop) as run:
        assert len(run.run().cycles) == 3


@pytest.mark.parametrize("strategy", ["margin", "oracle"])
def test_networks_beside_the_runs_own_are_trained_by_the_loop(strategy, tmp_path):
    """That by which a temperature is fitted, and those by which an oracle looks ahead."""
    seen = []
    options = {"temperature": "fitted"} if strategy == "margin" else {"batches": 7}
    with Experiment(
        tmp_path,
        splits=splits(80),
        task=TASK,
        model=MODEL,
        strategy=strategies.build(strategy, **options),
        settings=replace(SETTINGS, initial=20, cycles=2),
        trainer=partial(loop, seen=seen),
    ) as run:
        run.run()
    own, *beside = [len(ids) for cycle, _, ids, _ in seen if cycle == 0]
    assert own == 20
    assert beside == ([14] if strategy == "margin" else [26] * len(beside))  # 70%; 6 labels more
    assert len(beside) > (strategy == "oracle")
    assert [len(ids) for cycle, _, ids, _ in seen if cycle == 1] == [26]


def test_a_task_with_fewer_classes_than_the_data_is_refused(tmp_path):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 5
    with pytest.raises(ConfigError, match=r"the 5 classes of the data, the last of them '4', .* 4"):
        Experiment(
            tmp_path,
            splits=Splits.from_arrays(x, y, x, y),
            task=tasks.build("classification", num_classes=4),
            model=lambda: nn.Linear(4, 4),
            strategy=strategies.build("margin"),
        )
    assert not list(tmp_path.iterdir())


def test_what_does_not_go_together(tmp_path):
    with pytest.raises(ConfigError, match=r"one of `training`"):
        experiment(tmp_path, loop, training=TrainingSettings())
    with pytest.raises(ConfigError, match="ll4al trains a module"):
        experiment(tmp_path, loop, strategy="ll4al")
    with pytest.raises(ConfigError, match=r"`trainer` to be a function .* got str"):
        experiment(tmp_path, "loop")
    with pytest.raises(ConfigError, match=r"\(model, labelled, context\) but: too many pos"):
        experiment(tmp_path, lambda model, labelled: model)
    with experiment(tmp_path, loop) as run:
        run.ask()
    with pytest.raises(RunError, match="trainer"):
        experiment(tmp_path, nothing)
    with pytest.raises(RunError, match="trainer"):
        experiment(tmp_path, None)


def test_a_comparison_pairs_runs_of_an_own_loop(tmp_path):
    compared = compare(
        tmp_path,
        strategies={name: strategies.build(name) for name in ("random", "margin")},
        seeds=[0, 1],
        splits=splits(80),
        task=TASK,
        model=MODEL,
        trainer=loop,
        settings=SETTINGS,
        device="cpu",
    )
    for one, other in zip(compared.runs["random"], compared.runs["margin"], strict=True):
        assert one.initial == other.initial
        assert one.cycles[0].model_sha256 == other.cycles[0].model_sha256
        assert one.labels != other.labels


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({"steps": 2}, {"steps": 2, "rate": 0.5}),
        ({"steps": 2, "rate": 0.5}, {"steps": 2}),
        ({}, {"rate": 0.5}),
        ({"rate": 0.5}, {}),
        ({"rate": 0.5}, {"rate": 0.4}),
    ],
)
def test_a_run_is_gone_on_with_under_the_same_arguments_alone(then, now, tmp_path):
    experiment(tmp_path, partial(with_rate, **then)).close()
    with pytest.raises(RunError, match=r"trainer\.rate: .* there, .* now"):
        experiment(tmp_path, partial(with_rate, **now) if now else with_rate)
    with experiment(tmp_path, partial(with_rate, **then) if then else with_rate):
        pass


def with_rate(model, labelled, context, steps=2, rate=0.1):
    return model
