"""What pages show of real runs: pictures, guesses, labels, class balance, overlaps, the map."""

from __future__ import annotations

import base64
import io
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import Page
from PIL import Image

from upslope.comparison import compare
from upslope.config import Setup, assemble, load
from upslope.errors import DataError, RunError
from upslope.ledger import RunResult, read_run
from upslope.report import (
    Costs,
    Study,
    collect,
    collect_sets,
    summarise,
    summarise_sets,
    write,
    write_sets,
)
from upslope.report.choices import class_counts, cycles_of, overlaps
from upslope.report.document import document as document_of
from upslope.report.gallery import gallery
from upslope.report.page import page
from upslope.report.pool_map import make_map, principal_axes, spread_positions
from upslope.report.samples import open_samples
from upslope.report.thumbnails import mask_picture, thumbnail

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"


def run_all(folder: Path, document: dict[str, Any]) -> Setup:
    config = load(document)
    setup = assemble(config)
    compare(
        folder,
        strategies=setup.strategies,
        seeds=config.seeds,
        splits=setup.splits,
        task=setup.task,
        model=setup.model,
        settings=config.experiment,
        training=config.training,
        config=config.protocol(),
        root=config.root,
        device="cpu",
        progress=False,
    )
    return setup


DIGITS: dict[str, Any] = {
    "data": {"name": "digits", "limit": 120, "test_limit": 40},
    "model": {"name": "mlp", "hidden": 16},
    "strategies": ["random", "margin"],
    "seeds": 2,
    "experiment": {"initial": 20, "budget": 10, "cycles": 3, "candidates": "all"},
    "training": {"epochs": 3},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Setup]:
    folder = tmp_path_factory.mktemp("digits")
    return folder, run_all(folder, DIGITS)


def page_of(folder: Path, out: Path, **options: Any) -> Any:
    files = write(summarise(collect([folder])), out, **options)
    return Page(files.page.read_text(encoding="utf-8")).data


def test_guesses_are_those_of_the_network_that_chose(digits: tuple[Path, Setup]) -> None:
    """Computed again from the model of the cycle, its weights read from the run's folder."""
    folder, setup = digits
    kept = folder.parent / f"{folder.name}-kept"
    run_all(kept, {**DIGITS, "experiment": {**DIGITS["experiment"], "keep_models": "all"}})
    run = read_run(kept / "margin" / "seed-1")
    model = setup.model()
    from upslope.checkpoints import load_weights

    position = {id_: i for i, id_ in enumerate(setup.splits.pool.ids)}
    for cycle in run.cycles[:-1]:
        load_weights(model, run.path / cycle.model_file)
        inputs = setup.splits.pool.inputs([position[id_] for id_ in cycle.asked])
        with torch.no_grad():
            posterior = model.eval()(setup.task.prepare(inputs)).softmax(dim=1)
        assert list(cycle.guesses or ()) == posterior.argmax(dim=1).tolist()
        assert cycle.confidences == pytest.approx(posterior.amax(dim=1).tolist(), abs=1e-5)
        # The score of margin is one less the gap of the two largest: its picks come first.
        assert cycle.histogram is not None
        assert sum(cycle.histogram["counts"]) == cycle.n_candidates
        assert cycle.scores is not None
        assert cycle.histogram["high"] == pytest.approx(max(cycle.scores))
    assert run.cycles[-1].guesses is None


def test_the_gallery_holds_each_pick_with_its_picture_guess_and_label(
    digits: tuple[Path, Setup], tmp_path: Path
) -> None:
    folder, setup = digits
    gallery = page_of(folder, tmp_path)["sets"][0]["gallery"]
    assert gallery["seed"] == 0
    assert gallery["classes"] == [str(i) for i in range(10)]
    run = read_run(folder / "margin" / "seed-0")
    position = {id_: i for i, id_ in enumerate(setup.splits.pool.ids)}
    for shown, record in zip(gallery["strategies"]["margin"], run.cycles, strict=False):
        assert (shown["labels"], shown["count"]) == (record.n_labelled, len(record.asked))
        for (sample, score, guess, confidence, label), id_ in zip(
            shown["picks"], record.asked, strict=True
        ):
            assert gallery["samples"][sample]["id"] == id_
            assert label == int(setup.splits.pool.targets([position[id_]])[0])
            place = record.asked.index(id_)
            assert (guess, score) == (
                record.guesses[place],
                pytest.approx(record.scores[place], rel=1e-4),
            )
            assert confidence == pytest.approx(record.confidences[place], rel=1e-4)
            picture = gallery["samples"][sample]["picture"]
            assert picture.startswith("data:image/png;base64,")  # small, and without loss
            image = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2])))
            pixels = setup.splits.pool.inputs([position[id_]])[0, 0].numpy()
            assert np.array_equal(np.asarray(image), pixels)


def test_balance_and_overlap_are_counted_from_the_ledgers(digits: tuple[Path, Setup]) -> None:
    folder, setup = digits
    study = collect([folder])
    run = read_run(folder / "margin" / "seed-0")
    counts = class_counts(run, 10)
    assert counts is not None
    targets = dict(
        zip(setup.splits.pool.ids, setup.splits.pool.targets(range(120)).tolist(), strict=True)
    )
    asked = [*run.initial, *run.cycles[0].asked, *run.cycles[1].asked]
    for cycle, n in enumerate((20, 30, 40)):
        known = Counter(targets[id_] for id_ in asked[:n])
        assert counts[cycle].tolist() == [known[c] for c in range(10)]
    # A sample that was passed, whose pass was taken back, has no label: the chart was not drawn.
    first, second = run.cycles[0].asked[0], run.cycles[1].asked[0]
    without = {id_: label for id_, label in run.labels.items() if id_ != first}
    one_less = counts - np.eye(10)[targets[first]] * np.array([[0], [1], [1]])
    found = class_counts(replace(run, labels=without), 10)
    assert found is not None
    assert found.tolist() == one_less.tolist()
    # One that is asked once more, in a later cycle, was counted in both.
    early = replace(run.cycles[0], asked=(*run.cycles[0].asked, second))
    found = class_counts(replace(run, cycles=(early, *run.cycles[1:])), 10)
    assert found is not None
    assert found.tolist() == counts.tolist()
    shares = []
    for seed in (0, 1):
        one, other = (
            {i for c in read_run(folder / name / f"seed-{seed}").cycles for i in c.asked}
            for name in ("random", "margin")
        )
        shares.append(len(one & other) / len(one | other))
    matrix = overlaps(study, ["random", "margin"])
    assert matrix is not None
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(np.mean(shares))


def test_the_map_holds_every_pick_and_says_what_it_is_of(
    digits: tuple[Path, Setup], tmp_path: Path
) -> None:
    folder, _ = digits
    shown = page_of(folder, tmp_path / "one")["sets"][0]["gallery"]["map"]
    assert len(shown["x"]) == len(shown["y"]) == shown["pool"] == 120
    assert [len(cycle) for cycle in shown["picks"]["margin"]] == [10, 10]
    assert len(shown["initial"]) == 20
    assert not set(shown["initial"]) & {i for c in shown["picks"]["margin"] for i in c}
    assert "features of the last network" in shown["features"]
    again = page_of(folder, tmp_path / "two")["sets"][0]["gallery"]["map"]
    assert again == shown


def test_no_samples_of_the_data_reach_a_page_that_asks_for_none(
    digits: tuple[Path, Setup], tmp_path: Path
) -> None:
    gallery = page_of(digits[0], tmp_path, samples=False)["sets"][0]["gallery"]
    assert gallery["map"] is None
    assert all(set(sample) == {"id"} for sample in gallery["samples"])
    assert gallery["strategies"]["margin"][0]["picks"][0][2] is not None


def test_a_run_of_an_earlier_version_still_reports(tmp_path: Path) -> None:
    """Its ledger has neither guesses nor histograms."""
    data = page_of(EARLIER / "compared", tmp_path)
    (one,) = data["sets"]
    (shown,) = one["gallery"]["strategies"]["egl-sum"]
    assert shown["histogram"] is None
    assert [pick[2:4] for pick in shown["picks"]] == [[None, None]] * 10
    assert len(shown["scores"]) == 10
    assert one["gallery"]["samples"][0]["picture"].startswith("data:image/")
    assert one["rows"][0]["curve"]["mean"] == [
        cycle.metrics["accuracy"]
        for cycle in read_run(EARLIER / "compared" / "egl-sum" / "seed-0").cycles
    ]


def test_a_data_set_that_holds_others_now_gives_no_pictures(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    rows = [f"{i},{i % 7},{(3 * i) % 5},{'ab'[i % 2]}" for i in range(60)]
    table.write_text("\n".join(["id,x,y,label", *rows]))
    document = {
        **DIGITS,
        "data": {"name": "table", "root": str(table)},
        "experiment": {**DIGITS["experiment"], "initial": 10, "budget": 5},
    }
    run_all(tmp_path / "runs", document)
    gallery = page_of(tmp_path / "runs", tmp_path / "before")["sets"][0]["gallery"]
    pick = gallery["samples"][0]
    number = int(pick["id"])
    assert pick["text"] == f"x: {number % 7} · y: {(3 * number) % 5}"
    table.write_text("\n".join(["id,x,y,label", *rows[:-1]]))
    gallery = page_of(tmp_path / "runs", tmp_path / "after")["sets"][0]["gallery"]
    assert "holds others now" in gallery["why"]
    assert set(gallery["samples"][0]) == {"id"}


def test_hostile_texts_and_classes_are_data_alone(tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    evil = "</script><script>alert(1)</script>"
    classes = ['"><img src=x onerror=alert(1)>', "plain"]
    quoted = [f'"{name.replace(chr(34), chr(34) * 2)}"' for name in classes]
    rows = [f'"<b>{i}</b>","word {i} {evil}",{quoted[i % 2]}' for i in range(60)]
    table.write_text("\n".join(["id,text,label", *rows]))
    document = {
        **DIGITS,
        "data": {"name": "text", "root": str(table)},
        "model": {"name": "bag-of-words", "width": 4},
        "task": "text-classification",
        "experiment": {**DIGITS["experiment"], "initial": 10, "budget": 5},
    }
    run_all(tmp_path / "runs", document)
    html = write(summarise(collect([tmp_path / "runs"])), tmp_path).page.read_text("utf-8")
    assert evil not in html
    assert "<img" not in html
    gallery = Page(html).data["sets"][0]["gallery"]
    assert gallery["classes"] == sorted(classes)
    assert gallery["samples"][0]["id"].startswith("<b>")
    assert gallery["samples"][0]["text"].endswith(evil)


def test_folders_of_several_data_sets_make_one_page(
    digits: tuple[Path, Setup], tmp_path: Path
) -> None:
    folder, _ = digits
    more = {**DIGITS, "seeds": [2]}
    run_all(tmp_path / "more-seeds", more)
    other = {
        **DIGITS,
        "data": {"name": "breast-cancer", "limit": 100, "test_limit": 40},
        "seeds": 3,
    }
    run_all(tmp_path / "tumours", other)
    studies = collect_sets([folder, tmp_path / "more-seeds", tmp_path / "tumours"])
    assert [study.name for study in studies] == [folder.name, "tumours"]
    assert sorted(studies[0].complete("margin")) == [0, 1, 2]  # of two folders of one data set
    files = write_sets(summarise_sets(studies), tmp_path / "report", "Two")
    assert [one.csv.parent.name for one in files] == [folder.name, "tumours"]
    data = Page(files[0].page.read_text(encoding="utf-8")).data
    assert [len(one["rows"][0]["seeds"]) for one in data["sets"]] == [3, 3]
    assert data["sets"][1]["gallery"]["strategies"]["margin"]


def test_two_data_sets_that_ledgers_do_not_name_are_told_apart_by_a_note(tmp_path: Path) -> None:
    from upslope.datasets.splits import Splits
    from upslope.experiment import ExperimentSettings

    config = load(DIGITS)
    setup = assemble(config)
    for name, shift in (("one", 0), ("two", 90)):
        images = setup.splits.pool.inputs(range(120)).float() + shift
        noisy = torch.where(images > shift + 100, images, torch.full_like(images, float(shift)))
        targets = setup.splits.pool.targets(range(120))
        compare(
            tmp_path / name,
            strategies=setup.strategies,
            seeds=[0],
            splits=Splits.from_arrays(noisy, targets, noisy[:30] * (1 + shift), targets[:30]),
            task=setup.task,
            model=setup.model,
            settings=ExperimentSettings(initial=20, budget=10, cycles=2),
            training=config.training,
            device="cpu",
            progress=False,
        )
    one, two = collect_sets([tmp_path])
    assert (one.name, two.name) == ("one", "two")
    assert one.notes == ()
    assert "two and one hold the same strategy and seed with other figures" in two.notes[0]


def test_two_runs_on_one_named_data_set_are_never_two_data_sets(
    digits: tuple[Path, Setup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their losses differ by rounding, as those of two processes do, or by another rate."""
    folder, _ = digits
    run_all(tmp_path / "other-rate", {**DIGITS, "training": {**DIGITS["training"], "lr": 0.011}})
    with pytest.raises(RunError, match=r"one configuration .* differ in training\.lr"):
        collect_sets([folder, tmp_path / "other-rate"])
    again = tmp_path / "again"
    shutil.copytree(folder, again)

    def read_rounded(path: Path) -> RunResult:
        result = read_run(path)
        if not path.is_relative_to(again):
            return result
        first = result.cycles[0]
        first = replace(first, metrics={k: v * (1 + 1e-7) for k, v in first.metrics.items()})
        return replace(result, cycles=(first, *result.cycles[1:]))

    module = sys.modules["upslope.report.collect"]  # its function has the same name
    monkeypatch.setattr(module, "read_run", read_rounded)
    (study,) = collect_sets([folder, again])
    with pytest.raises(RunError, match="seed 0 twice"):
        summarise(study)


def test_the_first_components_are_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(3)
    for n, d in ((40, 6), (9, 30)):
        values = torch.randn(n, d, generator=generator, dtype=torch.float64)
        values[:, 0] *= 5
        mean, axes, explained = principal_axes(values)
        assert mean.numpy() == pytest.approx(values.numpy().mean(axis=0))
        _, s, vt = np.linalg.svd(values.numpy() - mean.numpy(), full_matrices=False)
        for k in range(2):
            sign = np.sign(vt[k][np.abs(vt[k]).argmax()])
            assert axes[:, k].numpy() == pytest.approx(sign * vt[k])
        assert explained == pytest.approx(float((s[:2] ** 2).sum() / (s**2).sum()))


def test_a_map_keeps_distances_and_refuses_what_has_none() -> None:
    square = torch.tensor([[0.0, 0], [4, 0], [0, 1], [4, 1]])
    made = make_map(square, range(4), range(4))
    assert max(made.x) - min(made.x) == 1000
    assert max(made.y) - min(made.y) == 250
    # A sample that is no part of the basis has a place, and turns no axis.
    with_pick = make_map(torch.cat([square, torch.tensor([[2.0, 9.0]])]), range(5), range(4))
    assert with_pick.y[4] > max(with_pick.y[:4])
    assert with_pick.explained == made.explained
    with pytest.raises(DataError, match="differ between samples"):
        make_map(torch.ones(5, 3), range(5), range(5))
    with pytest.raises(DataError, match="finite"):
        make_map(torch.full((5, 3), float("nan")), range(5), range(5))
    assert make_map(torch.arange(4.0)[:, None], range(4), range(4)).y == (500,) * 4


def test_a_map_of_two_kinds_of_samples_is_a_line() -> None:
    """With more features than samples the second axis was the first once more."""
    features = torch.randn(50, generator=torch.Generator().manual_seed(0))
    made = make_map(torch.stack([features, -features, features, -features]), range(4), range(4))
    assert set(made.x) == {0, 1000}
    assert set(made.y) == {500}
    assert spread_positions(100, 3) == [0, 50, 99]


def test_thumbnails_show_volumes_floats_and_masks() -> None:
    ramp = torch.linspace(-3, 9, 5 * 6 * 7).reshape(1, 5, 6, 7)
    address = thumbnail(ramp)
    assert address is not None
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert image.size == (7, 6)
    assert thumbnail(torch.zeros(12)) is None
    large = thumbnail(torch.randint(0, 255, (3, 300, 200), dtype=torch.uint8))
    assert large is not None
    image = Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2])))
    assert max(image.size) == 56
    mask = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    picture = mask_picture(mask, 255)
    colours = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("RGBA")
    assert [colours.getpixel((x, y))[3] for y in (0, 1) for x in (0, 1)] == [0, 150, 150, 150]
    assert colours.getpixel((1, 0))[:3] == (0x00, 0x72, 0xB2)
    assert colours.getpixel((1, 1))[:3] == (0, 0, 0)


@pytest.mark.long
def test_pages_with_pictures_of_noise_stay_under_ten_megabytes(tmp_path: Path) -> None:
    """20 strategies on 10 sets, each pick another image that no encoder makes small."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(2000) % 10
    data = tmp_path / "noise.npz"
    np.savez(data, x_train=noise, y_train=labels, x_test=noise[:10], y_test=labels[:10])
    document = {
        **DIGITS,
        "data": {"name": "npz", "root": str(data)},
        "strategies": ["random"],
        "seeds": 1,
        "experiment": {**DIGITS["experiment"], "initial": 10, "budget": 10, "cycles": 2},
        "training": {"epochs": 1},
    }
    setup = run_all(tmp_path / "runs", document)
    (run,) = collect([tmp_path / "runs"]).runs
    assert run.record is not None
    ids = np.random.default_rng(1).permutation(np.array(setup.splits.pool.ids))
    cycle, last = run.record.cycles
    studies = []
    for number in range(10):
        runs = []
        for s in range(20):
            asked = np.roll(ids, -97 * s)[:180].reshape(9, 20).tolist()
            cycles = tuple(
                replace(
                    cycle, asked=tuple(some), guesses=(3,) * 20, confidences=(0.5,) * 20,
                    scores=tuple(np.linspace(0, 1, 20)),
                )
                for some in asked
            )  # fmt: skip
            record = replace(run.record, cycles=(*cycles, last))
            runs.append(
                replace(
                    run, strategy="random" if s == 0 else f"strategy-{s}", record=record,
                    budgets=tuple(range(10, 201, 20)), scores=(0.1,) * 10, cycles=10,
                )
            )  # fmt: skip
        studies.append(Study(tuple(runs), name=f"set-{number}"))
    summaries = summarise_sets(studies)
    room = 6_000_000 // 10
    galleries = [gallery(summary, room) for summary in summaries]
    html = page(document_of(summaries, "Noise", Costs(), galleries))
    assert 2_000_000 < len(html) < 10_000_000
    shown = galleries[0]
    assert shown is not None
    assert 1 <= shown["shown"] < 20
    assert all(sample["picture"] for sample in shown["samples"])
    assert shown["strategies"]["strategy-7"][0]["count"] == 20
    assert len(shown["map"]["picks"]["strategy-7"][8]) == 20


def test_samples_are_opened_where_the_run_left_them(digits: tuple[Path, Setup]) -> None:
    run = read_run(digits[0] / "random" / "seed-0")
    samples = open_samples(run)
    assert list(samples.pool.ids) == list(digits[1].splits.pool.ids)
    assert samples.picture("no such sample") is None
    assert [cycle.labels for cycle in cycles_of(run)] == [20, 30]
