"""Text, label sets and numbers through Algorithm 1, from the command line or a configuration."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from upslope.cli import app
from upslope.config import assemble, check_compatible, parse
from upslope.errors import ConfigError, DataError
from upslope.experiment import Experiment
from upslope.ledger import read_run


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="upslope")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def finish(document, folder):
    """A run to the end, its labels given by the data set in between."""
    config = parse({**document, "device": "cpu"})
    setup = check_compatible(config, assemble(config))
    (strategy,) = setup.strategies.values()
    with Experiment(
        folder,
        splits=setup.splits,
        task=setup.task,
        model=setup.model,
        strategy=strategy,
        settings=config.experiment,
        training=config.training,
        device="cpu",
    ) as run:
        asked = run.ask()
        if setup.splits.pool.targets([0]).ndim > 1:
            with pytest.raises(DataError, match=rf"'{asked[0]}': Expected .* but got 'left'"):
                run.tell({asked[0]: "left"})
        run.tell(dict.fromkeys(asked))
        result = run.run()
    assert result.cycles[-1].n_labelled > len(asked)
    return result.cycles[-1].metrics


def test_regression_from_a_csv_by_the_command_line(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (150, 2))
    price = 300 + 40 * x[:, 0] - 25 * np.abs(x[:, 1]) + rng.normal(0, 2, 150)
    rows = "".join(f"{a:.4f},{b:.4f},{y:.3f}\n" for (a, b), y in zip(x, price, strict=True))
    (tmp_path / "houses.csv").write_text("size,age,price\n" + rows, encoding="utf-8")
    (tmp_path / "houses.yaml").write_text(
        f"""
data: {{name: table, root: "{tmp_path / "houses.csv"}", target: price, kind: numbers}}
task: {{name: regression, centre: [300], scale: [50]}}
model: {{name: mlp, hidden: 32}}
strategies: [emcm]
experiment: {{initial: 20, budget: 20, cycles: 3, candidates: all}}
training: {{epochs: 60, batch_size: 10, optimizer: adam, lr: 0.01}}
""",
        encoding="utf-8",
    )
    folder = tmp_path / "run"
    command = ("run", tmp_path / "houses.yaml", "--device", "cpu")
    code, _, err = call(*command, "--strategy", "emcm", "--out", folder)
    assert code == 0, err
    (ledger,) = folder.rglob("*.sqlite")
    figures = read_run(ledger.parent).cycles[-1].metrics
    assert figures["r2"] > 0.9
    assert figures["rmse"] < 15  # in the units of the prices, whose deviation is about 50
    code, _, err = call(*command, "--strategy", "entropy-gradnorm", "--dry-run")
    assert code != 0
    assert "strategies.entropy-gradnorm" in err
    assert "emcm" in err


def test_label_sets_from_a_csv(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    labels = (x + rng.normal(0, 0.2, x.shape) > 0).astype(int)
    rows = [",".join(map(str, [*a.round(4), *b])) for a, b in zip(x, labels, strict=True)]
    (tmp_path / "t.csv").write_text("a,b,c,red,old,wet\n" + "\n".join(rows), encoding="utf-8")
    figures = finish(
        {
            "data": {
                "name": "table", "root": str(tmp_path / "t.csv"), "kind": "labels",
                "target": "red,old,wet",
            },
            "task": "multi-label",
            "model": {"name": "mlp", "hidden": 32},
            "strategies": ["entropy-gradnorm"],
            "experiment": {"initial": 30, "budget": 20, "cycles": 2, "candidates": "all"},
            "training": {"epochs": 40, "batch_size": 10, "optimizer": "adam", "lr": 0.01},
        },
        tmp_path / "run",
    )  # fmt: skip
    assert figures["map"] > 0.9
    assert figures["micro_f1"] > 0.85


@pytest.mark.parametrize(
    ("data", "task", "strategy", "figure", "least"),
    [
        ("breast-cancer", "classification", "egl", "accuracy", 0.9),
        ("diabetes", {"name": "regression", "centre": [150], "scale": [75]}, "emcm", "r2", 0.2),
    ],
)
def test_tables_that_need_no_file(tmp_path, data, task, strategy, figure, least):
    figures = finish(
        {
            "data": data,
            "task": task,
            "model": {"name": "mlp", "hidden": 32, "layers": 1},
            "strategies": [strategy],
            "experiment": {"initial": 60, "budget": 30, "cycles": 2, "candidates": "all"},
            "training": {"epochs": 20, "batch_size": 16, "lr": 0.02},
        },
        tmp_path / "run",
    )
    assert figures[figure] > least


def test_text_with_a_network_of_transformers(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    words = ["[PAD]", "[UNK]", "[CLS]", "fine", "good", "poor", "bad", "the", "film", "was", "and"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16,
    ).save_pretrained(tmp_path)  # fmt: skip
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(120):
        label = int(rng.integers(2))
        pair = ("fine", "good") if label else ("poor", "bad")
        text = ["the", "film", "was", rng.choice(pair), *rng.choice(words[7:], 3)]
        rows.append({"text": " ".join(text), "label": ("down", "up")[label]})
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "films.jsonl").write_text(lines, encoding="utf-8")
    document = {
        "data": {
            "name": "text", "root": str(tmp_path / "films.jsonl"), "tokenizer": str(tmp_path),
        },
        "task": "text-classification",
        "model": {"name": "transformers", "path": str(tmp_path), "weights": False},
        "strategies": ["entropy-gradnorm"],
        "experiment": {"initial": 20, "budget": 20, "cycles": 2, "candidates": "all"},
        "training": {"epochs": 20, "batch_size": 10, "optimizer": "adam", "lr": 0.005},
    }  # fmt: skip
    assert finish(document, tmp_path / "run")["accuracy"] > 0.9
    wrong = parse({**document, "model": "mlp", "task": "classification"})
    assert assemble(wrong).splits.pool.input_shape[0] == 2


def test_answers_of_another_kind_than_the_task_are_told(tmp_path):
    document = {
        "data": "breast-cancer",
        "task": "regression",
        "model": {"name": "mlp", "hidden": 8},
        "strategies": ["random"],
        "experiment": {"initial": 20, "budget": 10, "cycles": 2},
        "training": {"epochs": 1},
    }
    with pytest.raises(DataError, match="kind: numbers"):
        finish(document, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"strategies\.margin: .*regression has none"):
        finish({**document, "strategies": ["margin"]}, tmp_path / "other")
