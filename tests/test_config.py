from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from short_forms import mark_rest_long
from upslope import datasets, models, strategies, tasks
from upslope.cli import app
from upslope.config import (
    Config,
    assemble,
    assemble_from_published_sizes,
    estimate,
    estimate_times,
    find_strategies,
    load,
    parse,
    plan,
)
from upslope.config.estimate_counts import count_cost
from upslope.config.estimate_samples import repeat_a_sample
from upslope.errors import ConfigError, SelectionError
from upslope.experiment import ExperimentSettings
from upslope.training import TrainingSettings

estimates = import_module("upslope.config.estimate")  # its function has the same name

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def faults(**document: object) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(document)
    return str(error.value).splitlines()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    assert load(path).strategies


def test_the_paper_s_protocol_is_that_of_appendix_a8() -> None:
    config = load(next(p for p in CONFIGS if p.stem == "cifar10-paper"))
    training, experiment = config.training, config.experiment
    assert (training.epochs, training.batch_size, training.lr) == (200, 128, 0.1)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)
    assert (training.milestones, training.gamma) == ((160,), 0.1)
    assert (experiment.initial, experiment.budget, experiment.cycles) == (0.1, 0.05, 7)
    assert experiment.candidates == "10x"
    assert config.model.name == "resnet18-cifar"
    norms = {c.options["norm"] for c in config.strategies if "norm" in c.options}
    assert norms == {"global", "tensor-sum"}


def test_all_faults_are_told_together_with_their_paths() -> None:
    found = faults(
        traning={},
        data={"limit": "x"},
        model="cnn-smal",
        strategies=["random", "margn", "random"],
        seeds=[1, 1],
        training={"epochs": "abc", "batch": 3, "lr": -1},
        experiment={"initial": 0, "candidates": "9y", "seed": 3},
        device="tpu",
        full_data=-1,
    )
    starts = [
        "traning: unknown key; did you mean `training`?",
        "data.limit: expected an integer of at least 1, or nothing but got 'x'",
        "model: Expected a model among",
        "strategies[1]: Expected a strategy among",
        "strategies: expected each to be there once but got 'random' 2 times",
        "seeds: expected how many (1 to 100,000) or a list of them but got [1, 1]",
        "experiment.seed: say which seeds under `seeds`",
        "experiment.initial: expected a number above 0 but got 0",
        'experiment.candidates: expected "all", a multiple',
        "training.epochs: expected an integer of at least 1, or \"auto\" but got 'abc'",
        "training.batch: unknown key; did you mean `batch_size`?",
        "training.lr: expected a number above 0 but got -1",
        "device: expected one of auto, cpu, cuda, mps but got 'tpu'",
        "full_data: expected a whole number of at least 0 but got -1",
    ]
    for start in starts:
        assert any(line.startswith(start) for line in found), (start, found)
    assert len(found) == len(starts)


def test_a_misspelt_recipe_is_told_the_key_that_is_near() -> None:
    (found,) = faults(training={"reciep": "fast"})
    assert found.startswith("training.reciep: unknown key; did you mean `recipe`?")


@pytest.mark.parametrize(
    "document",
    [
        {"data": 3},
        {"model": {"name": 5}},
        {"training": [1]},
        {"strategies": []},
        {"strategies": [{"norm": "global"}]},
        {"strategies": [{"name": "random", "label": "../up"}]},
        {"seeds": 0},
        {"seeds": True},
        {"data": {"root": 3}},
    ],
)
def test_wrong_kinds_are_config_errors(document: dict[str, object]) -> None:
    assert len(faults(**document)) == 1


def test_assignments_go_on_top_and_overrides_last(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("training: {epochs: 3, lr: 1e-2}\nseeds: 2\n")
    config = load(
        path,
        sets=["training.epochs=4", "data.limit=200", "strategies=[random, margin]"],
        overrides={"seeds": 3, "device": None},
    )
    assert (config.training.epochs, config.training.lr) == (4, 0.01)
    assert config.data.options == {"limit": 200}
    assert config.seeds == (0, 1, 2)
    assert [c.label for c in config.strategies] == ["random", "margin"]
    assert config.device == "auto"


def test_a_new_name_drops_the_options_of_the_old() -> None:
    document = {"model": {"name": "cnn-small", "width": 8}}
    config = load(document, sets=["model.hidden=16", "model.name=mlp"])
    assert (config.model.name, config.model.options) == ("mlp", {"hidden": 16})


@pytest.mark.parametrize("backwards", [False, True])
def test_assignments_of_one_section_hold_in_any_order(backwards: bool) -> None:
    sets = [
        "data={name: table, root: a.csv}",
        "data.name=folder",
        "data.white=4095",
        "data.root=photographs",
        "experiment.start.name=typiclust",
        "experiment.start.features=nets:make",
    ]
    config = load(sets=sets[::-1] if backwards else sets, overrides={"data.size": 64})
    assert (config.data.name, config.root) == ("folder", "photographs")
    assert config.data.options == {"white": 4095, "size": 64}
    assert config.experiment.start == {"name": "typiclust", "features": "nets:make"}


@pytest.mark.parametrize(
    ("document", "model", "task"),
    [
        ({}, "cnn-small", "classification"),
        ({"data": "text"}, "bag-of-words", "text-classification"),
        ({"data": {"name": "mask-folder"}}, "dilated-small", "segmentation"),
        ({"data": "camvid", "model": {"width": 8}}, "dilated-small", "segmentation"),
        ({"data": "voc"}, "dilated-small", "segmentation"),
        ({"data": {"name": "voc", "target": "classes"}}, "cnn-small", "classification"),
        ({"data": "coco"}, "cnn-small", "classification"),
        ({"data": {"name": "coco", "target": "masks"}}, "dilated-small", "segmentation"),
        ({"data": {"name": "text"}, "model": {"width": 8}}, "bag-of-words", "text-classification"),
        ({"data": {"name": "table"}, "task": "regression"}, "mlp", "regression"),
        ({"data": {"name": "table"}, "model": {"hidden": 9}}, "mlp", "classification"),
        ({"data": {"name": "text"}, "model": "mlp"}, "mlp", "text-classification"),
    ],
)
def test_model_and_task_go_by_the_data_where_none_is_named(
    document: dict[str, object], model: str, task: str
) -> None:
    config = parse(document)
    assert (config.model.name, config.task.name) == (model, task)


def test_variants_of_one_strategy_have_labels() -> None:
    config = parse(
        {
            "strategies": [
                {"name": "egl", "norm": "global"},
                {"name": "egl", "norm": "tensor-sum", "label": "egl-sum"},
            ]
        }
    )
    assert [c.label for c in config.strategies] == ["egl", "egl-sum"]


@pytest.mark.parametrize("name", ["hf", "parquet", "subtomograms", "webdataset"])
def test_a_reader_s_label_is_an_option_of_its_own(name: str) -> None:
    assert load(None, sets=[f"data.name={name}", "data.label=other"]).data.options == {
        "label": "other"
    }


def test_only_strategies_have_a_label_beside_their_options() -> None:
    found = faults(data={"name": "digits", "label": "x"}, model={"name": "mlp", "label": "x"})
    assert [line.partition(".")[0] for line in found] == ["data", "model"]
    assert all("label: unknown key" in line for line in found)


def test_strategies_of_the_command_line_may_have_options() -> None:
    """The commas of a mapping part its options, not strategies."""
    hot = "{name: margin, temperature: 2, label: hot}"
    for text in (f"random, {hot}", f"[random, {hot}]"):
        config = load(overrides={"strategies": text})
        assert [c.label for c in config.strategies] == ["random", "hot"]
        assert config.strategies[1].options == {"temperature": 2}
    (alone,) = load(overrides={"strategies": hot}).strategies
    assert alone.options == {"temperature": 2}
    with pytest.raises(ConfigError, match=r"^strategies: Expected '\{name: margin' to be YAML"):
        load(overrides={"strategies": "{name: margin"})


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "a mapping of sections but got list"), ("a: [", "to be YAML")],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path)
    with pytest.raises(ConfigError, match=r"a YAML file at .*upslope list configs"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"training\.epochs=5 but got 'x'"):
        load(sets=["x"])


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# nothing\n")
    assert load(path) == Config()


def test_the_protocol_says_nothing_of_place_seeds_or_company() -> None:
    one = load(sets=["data.root=/a", "device=cpu", "seeds=3", "strategies=[margin]"])
    two = load(sets=["data.root=/b", "seeds=[7]"])
    assert one.protocol() == two.protocol()
    assert "/a" not in str(one.protocol())


def test_plan_of_the_digits_by_hand() -> None:
    config = load(sets=["training.epochs=2", "training.batch_size=64", "seeds=2", "full_data=1"])
    planned = plan(config, assemble(config))
    assert planned.pool == 1400
    assert planned.budgets == (140, 210, 280, 350, 420, 490, 560)
    assert planned.candidates == (700,) * 6
    assert planned.steps == (6, 8, 10, 12, 14, 16, 18)
    assert (planned.runs, planned.full_data_runs, planned.total_steps) == (2, 1, 168)


def test_a_plan_for_more_labels_than_there_are_is_refused() -> None:
    config = load(sets=["experiment.cycles=30"])
    with pytest.raises(SelectionError, match="at most the 1400 labels"):
        plan(config, assemble(config))


def test_the_paper_s_protocols_of_masks_and_volumes() -> None:
    """Cityscapes as in A.8 (Adam, constant), the subtomograms as in A.5 (SGD, one milestone)."""
    configs = {p.stem: load(p) for p in CONFIGS}
    street = configs["cityscapes-paper"]
    assert street.model.name == "drn-d-22"
    assert street.task.options["crop"] == 688
    assert (street.training.epochs, street.training.batch_size) == (50, 8)
    assert (street.training.optimizer, street.training.lr) == ("adam", 1e-4)
    assert street.training.schedule == "constant"
    for name in ("50c-clean", "50c-snr005"):
        volumes = configs[f"{name}-paper"]
        assert (volumes.data.name, volumes.model.name) == (name, "resnet18-3d")
        training = volumes.training
        assert (training.epochs, training.milestones, training.gamma) == (100, (80,), 0.1)
        assert (training.lr, training.momentum, training.weight_decay) == (0.1, 0.9, 5e-4)
    for config in (street, configs["50c-clean-paper"], configs["50c-snr005-paper"]):
        experiment = config.experiment
        assert (experiment.initial, experiment.budget, experiment.cycles) == (0.1, 0.05, 7)


PAPER = {
    "cifar10-paper": (50_000, (5_000, 2_500, 25_000)),
    "cifar100-paper": (50_000, (5_000, 2_500, 25_000)),
    "svhn-paper": (73_257, (7_326, 3_663, 36_630)),
    "caltech101-paper": (6_942, (694, 347, 3_470)),
    "imagenet-paper": (1_281_167, (128_117, 64_058, 640_580)),
    "cityscapes-paper": (2_975, (298, 149, 1_490)),
    "50c-clean-paper": (24_000, (2_400, 1_200, 12_000)),
    "50c-snr005-paper": (24_000, (2_400, 1_200, 12_000)),
}
"""Pool, and initial labels, budget and candidates of the first cycle."""


@pytest.mark.parametrize("name", mark_rest_long(PAPER, 2))
def test_the_paper_s_protocols_are_planned_without_their_data(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes by hand; time from a pretended step of one second an operation, counted on shapes."""
    config = load(next(p for p in CONFIGS if p.stem == name), overrides={"device": "cpu"})
    setup = assemble_from_published_sizes(config)
    assert setup is not None
    planned = plan(config, setup)
    pool, (initial, budget, candidates) = PAPER[name]
    cycles = 5 if name == "imagenet-paper" else 7
    assert planned.pool == pool
    assert planned.budgets[0] == initial
    assert planned.budgets[1] - initial == budget
    assert len(planned.budgets) == cycles
    assert planned.candidates[0] == candidates
    monkeypatch.setattr(estimates, "time_steps", lambda *_: (2.0, 1))
    monkeypatch.setattr(estimates, "time_scores", lambda *a: (dict.fromkeys(a[3], 0.5), {}))
    costs = estimate(config, setup, planned)
    assert costs.total > costs.training > costs.step > 0
    assert costs.weights > 3 * 4 * planned.parameters  # gradients and optimiser beside them
    assert costs.activations > 0


def test_operations_and_kept_tensors_by_hand() -> None:
    """A linear layer: 2 n_in n_out operations forward, as much for its weights' gradient and, but
    for the first layer, for its inputs'."""
    config = load(sets=["model.name=mlp", "model.hidden=32", "model.layers=1"])
    setup = assemble(config)
    samples = repeat_a_sample(setup.splits.pool, setup.model, setup.task)
    work = count_cost(setup.model, setup.task, samples)
    first, second = 64 * 32, 32 * 10
    assert work.forward == 2 * (first + second)
    assert work.training == 2 * (2 * first + 3 * second)


def test_an_estimate_is_near_what_a_run_takes() -> None:
    config = load(sets=["strategies=[random, margin, ll4al]", "training.epochs=2"])
    setup = assemble(config)
    costs = estimate(config, setup, plan(config, setup))
    assert 0 < costs.step < 5
    assert costs.scoring["random"] == 0
    assert 0 < costs.scoring["margin"] < 60
    assert costs.left_out == {"ll4al": "trains something of its own"}
    assert costs.measured == "10 steps of batch 64 of 1x8x8 on cpu"


def test_a_corner_is_measured_where_a_sample_is_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """One eighth of each edge is 1/64 of the operations of a network of convolutions."""
    monkeypatch.setitem(estimate_times.OPERATIONS, "cpu", 1e8)
    sets = ["strategies=[random]", "model=dilated-small", "data.name=camvid", "data.limit=20"]
    config = load(sets=[*sets, "task.name=segmentation", "device=cpu"])
    setup = assemble_from_published_sizes(config)
    assert setup is not None
    costs = estimate(config, setup, plan(config, setup))
    assert (
        costs.measured
        == "10 steps of batch 2 of 3x45x60 on cpu, scaled by floating-point operations"
    )


def test_the_root_stays_where_the_name_comes_after_it() -> None:
    config = load(sets=["data.root=photos", "data.name=folder", "data.size=8"])
    assert (config.root, config.data.name, config.data.options) == ("photos", "folder", {"size": 8})


@pytest.mark.parametrize(
    "name", ["data.on_error", "data.root", "training.epochs", "experiment.cycles"]
)
def test_a_key_outside_its_section_is_told_where_it_stands(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse({name.split(".")[1]: 3})
    assert f"did you mean `{name}`?" in str(error.value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"data": {"nam": "table"}},
            "data.nam: unknown key; did you mean `name`? Expected one of `name`, `root`, `limit`, "
            "`test_limit`, `validation`, `read_limit`.",
        ),
        (
            {"strategies": [{"name": "margin", "labl": "m"}]},
            "strategies[0].labl: unknown key; did you mean `label`? Expected one of `name`, "
            "`label`, `temperature`.",
        ),
        (
            {"model": {"name": "cnn-small", "wdth": 1}},
            "model.wdth: unknown key; did you mean `width`? Expected one of `name`, ",
        ),
    ],
)
def test_an_unknown_key_is_compared_with_every_key_of_its_section(
    document: dict[str, object], message: str
) -> None:
    (line,) = faults(**document)
    assert line.startswith(message)


def test_no_message_shows_a_type_of_python() -> None:
    """Every option of every registry, given what no option takes."""
    told = []
    for kind, table in (("data", datasets), ("model", models), ("task", tasks)):
        for entry in table.describe():
            wrong = {option.name: {3: [()]} for option in entry.options}
            told += faults(**{kind: {"name": entry.name, **wrong}}) if wrong else []
    for entry in strategies.describe():
        wrong = {option.name: {3: [()]} for option in entry.options}
        told += faults(strategies=[{"name": entry.name, **wrong}]) if wrong else []
    for kind, settings in (("experiment", ExperimentSettings), ("training", TrainingSettings)):
        wrong = {field.name: {3: [()]} for field in fields(settings) if field.name != "seed"}
        told += faults(**{kind: wrong})
    expected = [line.partition(" but got ")[0] for line in told]
    assert len(expected) > 200
    for line in expected:
        assert " | " not in line, line
        assert not re.search(r"\b(None|int|float|str|bool|list\[|dict|tuple)\b", line), line
    assert "data.limit: expected an integer of at least 1, or nothing" in expected
    assert "data.columns: expected text, or a list of texts, or nothing" in expected


def test_settings_in_python_name_the_fault_as_the_file_does() -> None:
    for settings, words in (
        (lambda: ExperimentSettings(initial=0), "experiment: Expected `initial` to be a number"),
        (lambda: ExperimentSettings(initial=1.5), "experiment: Expected `initial` to be a count"),
        (lambda: ExperimentSettings(start="margin"), "experiment: Expected `start` to be random"),
        (lambda: TrainingSettings(schedule="milestones"), "training: Expected `milestones` to be"),
    ):
        with pytest.raises(ConfigError) as error:
            settings()
        assert str(error.value).startswith(words)
    assert faults(experiment={"start": "margin"})[0].startswith("experiment.start: expected random")
    (line,) = faults(experiment={"start": {"name": "typiclust", "step": 3}})
    assert line.startswith("experiment: start: strategy 'typiclust': Expected options among")
    (line,) = faults(training={"epochs": 3, "sample_passes": 100})
    assert line.startswith("training: Expected one of `epochs` and `sample_passes`")


@pytest.mark.parametrize("columns", ["price", "[price, size]"])
def test_numbers_are_no_classes(tmp_path: Path, columns: str) -> None:
    """One column was one class, and two of them ended in a traceback after the training."""
    (tmp_path / "t.csv").write_text("size,age,price\n" + "1,2,3\n4,5,6\n" * 10)
    sets = ["data.name=table", f"data.root={tmp_path / 't.csv'}", "data.kind=numbers"]
    with pytest.raises(ConfigError, match=r"'price'.* learnt.* Set task\.name=regression"):
        assemble(load({}, sets=[*sets, f"data.target={columns}"]))
    assemble(load({}, sets=[*sets, f"data.target={columns}", "task.name=regression"]))


@pytest.mark.parametrize("label", ["full-data", "report", "a/b", "..", ""])
def test_labels_are_names_of_folders_of_their_own(label: str) -> None:
    """Runs in `full-data` were left out of the report as if trained on the whole pool."""
    (line,) = faults(strategies=[{"name": "margin", "label": label}])
    assert "labels that name folders" in line
    assert repr(label) in line


def test_a_label_of_null_is_none() -> None:
    (strategy,) = load({"strategies": [{"name": "margin", "label": None}]}).strategies
    assert strategy.label == "margin"


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999", '"inf"'])
def test_numbers_are_finite(value: str) -> None:
    """A rate of infinity ended in a traceback of torch."""
    with pytest.raises(ConfigError, match=r"training\.lr: expected"):
        load(sets=[f"training.lr={value}"])


def test_a_file_in_another_encoding_is_told_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: digits\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"UTF-8 but .* at byte 0\. Save it again in UTF-8"):
        load(file)


@pytest.mark.parametrize("name", ["cifar10-small", "tabular"])
def test_a_listed_configuration_is_a_file_of_its_own(name: str, tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["list", name]).stdout
    (tmp_path / "mine.yaml").write_text(listed, encoding="utf-8")
    assert load(tmp_path / "mine.yaml") == load(name)


@pytest.mark.parametrize(
    ("text", "value"), [("010", 8), ("1:30", 90), ("-0_17", -15), ("1:30.5", 90.5)]
)
def test_numbers_in_base_8_or_60_are_refused(text, value):
    """Class 010 was class 8, and 1:30 was 90, without a word."""
    for sets in (f"data.classes=[{text}, 2]", f"experiment.budget={text}"):
        with pytest.raises(ConfigError, match=rf"{text} is the number {value} in YAML.*'{text}'"):
            load("digits", sets=[sets])
    assert load("digits", sets=["seeds=[00, 07, 1_0, 0x1F]"]).seeds == (0, 7, 10, 31)


@pytest.mark.parametrize(
    "text",
    [
        "margin, {name: u-herding, temperature: 2}",
        "[margin, {name: u-herding, temperature: 2}]",
        "margin,{name: u-herding,temperature: 2},",
    ],
)
def test_strategies_to_keep_signals_for_may_have_options(text: str) -> None:
    margin, herding = find_strategies(text)
    assert (type(margin), herding) == (
        strategies.Margin,
        strategies.build("u-herding", temperature=2),
    )
