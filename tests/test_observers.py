"""What TensorBoard and MLflow are told of a run is what its ledger holds."""

from __future__ import annotations

import importlib.util
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from small_tasks import MODEL, TASK, splits
from upslope import Experiment, ExperimentSettings, TrainingSettings, strategies
from upslope.errors import ConfigError, RunError
from upslope.observers import MLflow, TensorBoard, together
from upslope.observers.figures import Figures
from upslope.progress import Progress

SETTINGS = ExperimentSettings(initial=12, budget=6, cycles=3, candidates="all")


def run(folder, observer, cycles=3):
    with Experiment(
        folder, splits=splits(60), task=TASK, model=MODEL, strategy=strategies.build("margin"),
        settings=ExperimentSettings(initial=12, budget=6, cycles=cycles, candidates="all"),
        training=TrainingSettings(epochs=2), device="cpu", observer=observer,
    ) as experiment:  # fmt: skip
        return experiment.run()


def test_figures_come_once_per_cycle_against_the_labels(tmp_path):
    written = []
    result = run(tmp_path, Figures(lambda *figures: written.append(figures)))
    assert [(name, labels) for name, labels, _ in written] == [("", 12), ("", 18), ("", 24)]
    for (_, _, figures), cycle in zip(written, result.cycles, strict=True):
        for name, value in cycle.metrics.items():
            assert figures[f"test/{name}"] == value
        for name, value in cycle.train_metrics.items():
            assert figures[f"train/{name}"] == value
        assert figures["seconds/train"] > 0


def test_runs_are_told_apart_and_what_is_not_finite_is_left_out():
    written = []
    figures = Figures(lambda *one: written.append(one))
    for name in ("a/seed-0", "b/seed-0"):
        figures(Progress("train", 0, 4, run=name))
    figures(Progress("train", 4, 4, run="a/seed-0"))
    figures(Progress("cycle", 1, 2, {"x": float("nan"), "y": 0.5}, run="a/seed-0", labelled=7))
    ((name, labels, told),) = written
    assert (name, labels) == ("a/seed-0", 7)
    assert set(told) == {"test/y", "seconds/train"}


def test_several_observers_are_told_in_order():
    told = []
    observer = together(
        lambda p: told.append(("one", p.done)), lambda p: told.append(("two", p.done))
    )
    observer(Progress("train", 3, 4))
    assert told == [("one", 3), ("two", 3)]


@pytest.mark.filterwarnings("ignore")  # of the libraries' own
def test_tensorboard_holds_the_curve(tmp_path):
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoard(tmp_path / "board") as board:
        result = run(tmp_path / "run", board)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    curve = events.Scalars("test/accuracy")
    labels, accuracy = result.curve()
    assert [one.step for one in curve] == list(labels)
    assert [one.value for one in curve] == pytest.approx(list(accuracy))


@pytest.mark.filterwarnings("ignore")  # of the libraries' own
def test_mlflow_holds_the_curve_and_goes_on_with_it(tmp_path):
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed")
    from mlflow.tracking import MlflowClient

    store = tmp_path / "mlruns"
    with MLflow(store) as tracker:
        run(tmp_path / "run", tracker, cycles=2)
    with MLflow(store) as tracker:
        result = run(tmp_path / "run", tracker)
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("upslope")
    (found,) = client.search_runs([experiment.experiment_id])
    curve = client.get_metric_history(found.info.run_id, "test/accuracy")
    labels, accuracy = result.curve()
    assert sorted((one.step, one.value) for one in curve) == list(
        zip(labels, accuracy, strict=True)
    )
    assert found.info.status == "FINISHED"


class StoreOfRuns:
    """What is asked of MLflow's client, kept in memory."""

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, str]] = {}
        self.figures: dict[str, list[float]] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="0")

    def search_runs(self, experiments: Any, query: str) -> list[Any]:
        ids = [id_ for id_, tags in self.tags.items() if f"'{tags['upslope.run']}'" in query]
        return [SimpleNamespace(info=SimpleNamespace(run_id=id_)) for id_ in ids]

    def create_run(self, experiment: str, run_name: str, tags: Any) -> Any:
        id_ = f"run-{len(self.tags)}"
        self.tags[id_], self.figures[id_] = tags, []
        return SimpleNamespace(info=SimpleNamespace(run_id=id_))

    def log_metric(self, id_: str, name: str, value: float, step: int) -> None:
        self.figures[id_].append(value)

    def set_terminated(self, id_: str) -> None:
        """Nothing is asked of it afterwards."""


def test_mlflow_tells_runs_of_one_name_apart_by_their_folders(tmp_path, monkeypatch):
    store = StoreOfRuns()
    client = SimpleNamespace(MlflowClient=lambda tracking_uri: store)
    monkeypatch.setattr("upslope.observers.mlflow.import_package", lambda *_: client)
    for folder, accuracy in (("a", 0.5), ("b", 0.6), ("a", 0.7)):
        with MLflow("http://server", runs=tmp_path / folder) as tracker:
            tracker(Progress("cycle", 1, 1, {"accuracy": accuracy}, labelled=10))
    assert list(store.figures.values()) == [[0.5, 0.7], [0.6]]


@pytest.mark.parametrize(("module", "observer"), [("tensorboard", TensorBoard), ("mlflow", MLflow)])
def test_without_its_package_an_observer_says_what_to_install(
    module, observer, tmp_path, monkeypatch
):
    import sys

    for name in [n for n in sys.modules if n.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install '\.\[{module}\]'"):
        observer(tmp_path)


def test_a_store_that_fails_ends_no_run_and_gets_its_figures_later(tmp_path):
    """A server that was started anew overnight ended the run with a traceback."""
    written, is_down = [], [False, True, False]

    def write(*figures):
        if is_down.pop(0):
            raise ConnectionError("refused\nthere is more")
        written.append(figures)

    with pytest.warns(UserWarning, match=r"written to a store: ConnectionError: refused\. The run"):
        result = run(tmp_path, Figures(lambda *figures: write(*figures), "a store"), cycles=2)
    assert [labels for _, labels, _ in written] == [12]
    assert len(result.cycles) == 2

    written.clear()
    is_down[:] = [True, True, False, False, False]
    figures = Figures(write, "a store")
    cycles = [Progress("cycle", 1, 3, {"x": 0.5}, labelled=labels) for labels in (1, 2, 3)]
    with pytest.warns(UserWarning, match="a store") as told:
        deque(map(figures, cycles))
    assert len(told) == 1
    assert [labels for _, labels, _ in written] == [1, 2, 3]


def test_what_is_left_is_written_at_the_end(tmp_path, monkeypatch):
    store, fails = StoreOfRuns(), [True]
    client = SimpleNamespace(MlflowClient=lambda tracking_uri: store)
    monkeypatch.setattr("upslope.observers.mlflow.import_package", lambda *_: client)
    right = store.create_run

    def create_run(*arguments: Any, **named: Any) -> Any:
        if fails:
            raise OSError(fails.pop())
        return right(*arguments, **named)

    monkeypatch.setattr(store, "create_run", create_run)
    with MLflow("http://server", runs=tmp_path) as tracker:
        with pytest.warns(UserWarning, match="MLflow, http://server: OSError"):
            tracker(Progress("cycle", 1, 1, {"accuracy": 0.5}, labelled=10))
        assert not store.figures
    assert list(store.figures.values()) == [[0.5]]


def test_a_server_that_does_not_answer_is_told_before_the_run(tmp_path, monkeypatch):
    def client(tracking_uri: str) -> Any:
        raise ConnectionError("refused")

    package = SimpleNamespace(MlflowClient=client)
    monkeypatch.setattr("upslope.observers.mlflow.import_package", lambda *_: package)
    with pytest.raises(RunError, match=r"store http://server to answer .* Start its server"):
        MLflow("http://server", runs=tmp_path)
