"""Algorithm 1: what is shared by seed, what is asked, what is refused, what is recorded."""

from __future__ import annotations

import errno
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from small_tasks import MODEL, Points, opening, splits
from upslope import checkpoints
from upslope.checkpoints import load_tensors
from upslope.datasets import Splits
from upslope.errors import ConfigError, DataError, ModelError, RunError, SelectionError
from upslope.experiment import ExperimentSettings
from upslope.ledger.status import lines, status
from upslope.pool import Need, PoolView, Selection
from upslope.progress import Interrupted, Progress, Stop
from upslope.training import TrainingSettings

SETTINGS = ExperimentSettings(initial=20, budget=10, cycles=3, keep_models="all", score_batch=64)
TRAINING = TrainingSettings(epochs=2, batch_size=8)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    with opening(tmp_path, settings=SETTINGS, training=TRAINING) as open_one:
        yield open_one


def test_the_run_grows_by_its_budget_and_is_recorded(start: Any) -> None:
    run = start(config={"data": {"name": "points"}}).run()
    assert run.finished
    assert [c.n_labelled for c in run.cycles] == [20, 30, 40]
    assert [len(c.asked) for c in run.cycles] == [10, 10, 0]
    assert [c.n_candidates for c in run.cycles] == [100, 100, 0]  # 10 x K of the 180, 170 left
    asked = [*run.initial, *run.cycles[0].asked, *run.cycles[1].asked]
    assert len(set(asked)) == 40
    assert list(run.labels) == asked
    pool = splits().pool
    truth = dict(zip(pool.ids, pool.targets(range(200)).tolist(), strict=True))
    assert all(truth[i] == label for i, label in run.labels.items())
    assert run.config["data"] == {"name": "points"}
    assert run.config["strategy"]["name"] == "margin"
    assert run.config["experiment"]["seed"] == run.seed == 0
    assert run.environment["packages"]["torch"] == importlib.metadata.version("torch")
    for cycle in run.cycles:
        assert set(cycle.metrics) >= {"accuracy"}
        assert set(cycle.train_metrics) == set(cycle.metrics)
        assert checkpoints.file_sha256(run.path / cycle.model_file) == cycle.model_sha256
        assert cycle.scores is None or list(cycle.scores) == sorted(cycle.scores, reverse=True)


def test_strategies_share_initial_set_weights_and_order_by_seed(start: Any) -> None:
    a, b = start("a", "random").run(), start("b", "entropy").run()
    c = start("c", "random", settings=replace(SETTINGS, seed=1)).run()
    assert a.initial == b.initial != c.initial
    # Equal sets, weights and orders make equal first models, although nothing was copied.
    assert a.cycles[0].model_sha256 == b.cycles[0].model_sha256 != c.cycles[0].model_sha256
    assert a.cycles[0].metrics == b.cycles[0].metrics
    assert a.cycles[1].model_sha256 != b.cycles[1].model_sha256


def test_the_same_run_twice_is_the_same(start: Any) -> None:
    a, b = start("a").run(), start("b").run()
    assert [c.model_sha256 for c in a.cycles] == [c.model_sha256 for c in b.cycles]
    assert a.labels == b.labels


def test_a_finished_run_does_nothing_more(start: Any) -> None:
    first = start()
    before = first.run()
    first.close()
    seen: list[Progress] = []
    assert start(observer=seen.append).run() == before
    assert seen == []


def test_ask_and_tell_is_the_same_run(start: Any) -> None:
    pool, whole = splits().pool, start("oracle").run()
    hand = start("hand", splits=replace(splits(), pool=Points(200, labelled=False)))
    position = {i: n for n, i in enumerate(pool.ids)}
    while ids := hand.ask():
        assert hand.ask() == ids  # asking again asks the same
        backwards = list(reversed(ids))
        for part in (backwards[:3], backwards[3:]):
            hand.tell({i: int(pool.targets([position[i]])) for i in part})
    assert hand.finished
    by_hand = hand.result()
    assert by_hand.labels == whole.labels
    assert [c.model_sha256 for c in by_hand.cycles] == [c.model_sha256 for c in whole.cycles]
    assert hand.model()(torch.zeros(1, 2)).shape == (1, 3)


def test_labels_that_cannot_be_are_refused_together(start: Any) -> None:
    run = start()
    with pytest.raises(DataError, match="none is yet"):
        run.model()
    first, second, third, *_ = run.ask()
    run.tell({first: 0})
    other = next(i for i in splits().pool.ids if i not in run.state.initial)
    wrong = {first: 1, second: 3, third: "rihgt", "nobody": 0, other: 0}
    with pytest.raises(DataError) as caught:
        run.tell(wrong)
    message = str(caught.value)
    assert f"'{second}': Expected a class, 'left', 'right', 'far', or its number" in message
    assert f"'{third}': Expected one of the classes" in message
    assert "did you mean `right`?" in message
    assert "ids of the pool but got 'nobody'" in message
    assert f"'{other}' was not" in message
    assert run.state.labels == {first: 0}
    for label in (1.5, True, "0", -1, "", b"left"):
        with pytest.raises(DataError):
            run.tell({second: label})
    for answers, got in (([second], "a list"), (None, "nothing")):
        with pytest.raises(DataError, match=f"mapping of ids to labels but got {got}.*id: label"):
            run.tell(answers)
    assert third in run.ask()


def test_warm_start_goes_on_from_the_cycle_before(start: Any) -> None:
    still = replace(TRAINING, epochs=1, lr=1e-12, weight_decay=0.0)
    models = {}
    for retrain in ("scratch", "warm"):
        settings = replace(SETTINGS, retrain=retrain, cycles=2)
        run = start(retrain, settings=settings, training=TRAINING).run()
        models[retrain] = [load_tensors(run.path / c.model_file)[0] for c in run.cycles]
    assert torch.equal(models["scratch"][0]["0.weight"], models["warm"][0]["0.weight"])
    assert not torch.equal(models["scratch"][1]["0.weight"], models["warm"][1]["0.weight"])
    # With a rate of nothing the second model is where it started from.
    settings = replace(SETTINGS, retrain="warm", cycles=3)
    run = start("still", settings=settings, training=still).run()
    first, _, last = (load_tensors(run.path / c.model_file)[0]["0.weight"] for c in run.cycles)
    torch.testing.assert_close(first, last, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("candidates", "expected"), [("10x", 100), ("2x", 20), ("all", 180), (50, 50), (5, 10)]
)
def test_candidates(start: Any, candidates: Any, expected: int) -> None:
    settings = replace(SETTINGS, candidates=candidates, cycles=2)
    assert start(settings=settings).run().cycles[0].n_candidates == expected


@dataclass(frozen=True)
class Watching:
    """Takes the first candidates, and remembers what it saw."""

    name: ClassVar[str] = "watching"
    views: ClassVar[list[PoolView]] = []
    needs: tuple[Need, ...] = ()
    short: int = 0

    def select(self, pool: PoolView, budget: int, rng: torch.Generator) -> Selection:
        self.views.append(pool)
        return Selection(tuple(pool.candidates[: budget - self.short]))


def test_what_a_strategy_sees(start: Any) -> None:
    Watching.views.clear()
    run = start(
        strategy=Watching((Need.of("probabilities"), Need.of("probabilities", labelled=True)))
    )
    result = run.run()
    first, second = Watching.views
    pool = splits().pool
    assert list(first.candidates) == sorted(first.candidates)
    assert set(first.labelled) == set(result.initial)
    assert not set(first.candidates) & set(first.labelled)
    assert len(second.labelled) == 30
    position = {i: n for n, i in enumerate(pool.ids)}
    assert first.labels is not None
    assert first.labels.tolist() == pool.targets([position[i] for i in first.labelled]).tolist()
    labelled = first.labelled_signal(Need.of("probabilities", labelled=True))
    assert labelled.shape == (20, 3)


def test_a_strategy_that_breaks_its_contract_is_named(start: Any) -> None:
    run = start(strategy=Watching((), short=1))
    with pytest.raises(SelectionError, match="'watching' to choose 10 distinct candidates"):
        run.run()
    assert len(run.state.cycles) == 1


class BuiltLate(torch.nn.Module):
    """A network that makes its last layer when it sees the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = torch.nn.Linear(2, 4), None

    def forward(self, x: Tensor) -> Tensor:
        if self.last is None:
            self.last = torch.nn.Linear(4, 3)
        return self.last(self.hidden(x).relu())


def test_layers_made_in_the_forward_pass_are_refused_before_any_training(start: Any) -> None:
    """They ended the second cycle, with a checkpoint that did not fit."""
    run = start(model=BuiltLate)
    with pytest.raises(ModelError, match=r"forward pass made 'last.bias', 'last.weight'.*Lazy"):
        run.run()
    assert not run.state.cycles


def test_budgets_that_do_not_fit(start: Any) -> None:
    for options, words in (
        ({"initial": 201}, "`experiment.initial` to be between 1 and the 200"),
        ({"initial": 180, "budget": 11}, "Lower `experiment.budget` to at most 10, or run"),
        ({"initial": 201}, "pool but got 201. Lower it"),
        ({"initial": 0.001}, "the share 0.001 is 0. Raise it"),
        ({"initial": 200, "cycles": 3}, "Run 1 cycle at most, or lower `experiment.initial`"),
        ({"initial": 190, "cycles": 40, "budget": 5}, "Run 3 cycles at most, or lower"),
    ):
        with pytest.raises(SelectionError, match=words):
            start(settings=replace(SETTINGS, **options))
    with pytest.raises(ConfigError) as caught:
        ExperimentSettings(initial=0.0, budget=1.5, candidates="some")
    assert "initial" in str(caught.value)
    everything = replace(SETTINGS, initial=180, budget=10)
    assert start("all", settings=everything).run().cycles[-1].n_labelled == 200


def test_an_empty_pool_or_repeated_ids(start: Any) -> None:
    with pytest.raises(DataError, match="empty"):
        start(splits=splits(0))

    class Twice(Points):
        @property
        def ids(self) -> list[str]:
            return ["a"] * self.n

    with pytest.raises(DataError, match="'a' comes twice"):
        start(splits=replace(splits(), pool=Twice(5)))


def test_unreadable_samples(start: Any) -> None:
    probe = start("probe", settings=replace(SETTINGS, cycles=1)).run()
    pool = splits().pool
    bad = {pool.ids.index(probe.initial[0])} | {
        i for i, id_ in enumerate(pool.ids) if i % 5 == 0 and id_ not in probe.initial
    }
    torn = replace(splits(), pool=Points(200, corrupt=frozenset(bad), resident=False))
    with pytest.raises(DataError, match="torn"):
        start("fail", splits=torn).run()
    for strategy in ("margin", "random"):
        settings = replace(SETTINGS, on_corrupt="skip", candidates="all")
        run = start(strategy, strategy, splits=torn, settings=settings).run()
        assert [c.n_labelled for c in run.cycles] == [20, 30, 40]
        assert not {pool.ids[i] for i in bad} & set(run.labels)
        assert run.cycles[0].skipped
        assert set(run.cycles[0].skipped) <= set(status(run)["unreadable"])
        assert ("unreadable", ", ".join(map(repr, run.unreadable))) in lines(status(run))
        assert len(run.cycles[0].skipped) + run.cycles[0].n_candidates >= 179


def test_another_configuration_is_refused(start: Any) -> None:
    start().close()
    with pytest.raises(RunError, match=r"training.epochs: 2 there, 3 now"):
        start(training=replace(TRAINING, epochs=3))
    with pytest.raises(RunError, match=r"strategy.name: margin there, random now"):
        start(strategy="random")
    with pytest.raises(RunError, match=r"Expected the 80 test samples .* but the 81 there are now"):
        start(splits=replace(splits(), test=Points(81, seed=1)))
    names = ("left", "far", "right")
    renamed = Splits(Points(200, classes=names), Points(80, seed=1, classes=names))
    with pytest.raises(RunError, match=r"classes: \['left', 'right', 'far'\] there"):
        start(splits=renamed)


def test_a_model_that_does_not_fit_the_task(start: Any) -> None:
    with pytest.raises(ModelError, match=r"\(2, 3\)"):
        start(model=lambda: torch.nn.Linear(2, 5)).run()


def test_what_makes_no_network_is_told(start: Any) -> None:
    with pytest.raises(ConfigError, match=r"function that makes .* got a network, Linear.*lambda"):
        start(model=torch.nn.Linear(2, 3))
    with pytest.raises(ConfigError, match="function that makes a network but got None"):
        start(model=None)
    with pytest.raises(ConfigError, match=r"needs arguments.*'in_features'.*lambda: MyNetwork"):
        start(model=torch.nn.Linear)
    with pytest.raises(ModelError, match=r"it returned nothing\. End it with `return network`"):
        start(model=lambda: None).run()
    with pytest.raises(ModelError, match=r"weights with numbers .*meta device"):
        start("meta", model=lambda: torch.nn.Linear(2, 3, device="meta")).run()
    with pytest.raises(ModelError, match=r"float64.*model\.float\(\)"):
        start("double", model=lambda: MODEL().double()).run()


def test_a_full_disk_loses_nothing_recorded(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start("whole").run()
    run, save = start(), checkpoints.save_file

    def fills(*arguments: Any, **options: Any) -> None:
        if len(run.state.cycles) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", fills)
        with pytest.raises(RunError, match="it is full"):
            run.run()
    assert len(run.state.cycles) == 1
    assert len(run.state.labels) == 30
    run.close()
    resumed = start().run()
    assert [c.model_sha256 for c in resumed.cycles] == [c.model_sha256 for c in whole.cycles]


@pytest.mark.parametrize("phase", ["train", "evaluate", "score", "select"])
def test_a_stop_in_any_phase_and_on_again(start: Any, phase: str) -> None:
    whole, stop = start("whole").run(), Stop()

    def watch(progress: Progress) -> None:
        if progress.phase == phase and progress.cycle == 1:
            stop.request()

    run = start(observer=watch, stop=stop)
    with pytest.raises(Interrupted):
        run.run()
    run.close()
    resumed = start().run()
    assert [c.model_sha256 for c in resumed.cycles] == [c.model_sha256 for c in whole.cycles]
    assert [c.asked for c in resumed.cycles] == [c.asked for c in whole.cycles]


def test_old_models_are_dropped_where_only_the_last_is_kept(start: Any) -> None:
    run = start(settings=replace(SETTINGS, keep_models="last")).run()
    assert [p.name for p in (run.path / "models").iterdir()] == ["cycle-2.safetensors"]
    assert not (run.path / "training.safetensors").exists()
