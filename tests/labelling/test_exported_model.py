"""The model as a file: its numbers are those of `predict`, in safetensors and in ONNX Runtime."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import make_squares
from safetensors import SafetensorError, safe_open
from test_label_command import run

from upslope.checkpoints import read_safetensors, write_safetensors
from upslope.labelling import extraction
from upslope.labelling.exported_model import ImageStatistics
from upslope.labelling.extraction import Extractor, extractors, take_features
from upslope.labelling.features import STATISTICS, image_statistics
from upslope.labelling.project import Project
from upslope.labelling.samples import DatasetImages, FolderImages, open_samples


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of 24 squares, 12 of them labelled."""
    monkeypatch.chdir(tmp_path)
    colours = make_squares(tmp_path / "squares", 24)
    run("init", "p", "--data", "squares", "--classes", "red,blue", "--control", "0")
    with Project(tmp_path / "p") as project:
        for id_ in list(colours)[:12]:
            project.answer(id_, colours[id_], author="me")
    return tmp_path


def predicted(path: Path) -> dict[str, tuple[str, float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["id"]: (row["prediction"], float(row["probability"])) for row in rows}


def images(folder: Path) -> FolderImages:
    samples = open_samples(str(folder), ("red", "blue"))
    assert isinstance(samples, FolderImages)
    return samples


def test_statistics_in_torch_are_those_in_numpy() -> None:
    digits = open_samples("digits", tuple("0123456789"))
    assert isinstance(digits, DatasetImages)
    pixels = np.stack([digits.pixels(i, 64) for i in range(12)])
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    for batch in (pixels, noise):
        ours = ImageStatistics()(torch.from_numpy(batch).float() / 255).numpy()
        np.testing.assert_allclose(ours, image_statistics(batch), atol=2e-4)


def test_safetensors_hold_the_model_of_predict(labelled: Path) -> None:
    assert "a model of 12 labels" in run("export", "p", "m.safetensors")
    run("predict", "p", "out.csv")
    with safe_open(labelled / "m.safetensors", "np") as file:
        assert json.loads(file.metadata()["classes"]) == ["red", "blue"]
        weight, bias, mean, deviation = (
            file.get_tensor(name) for name in ("weight", "bias", "mean", "deviation")
        )
    samples = images(labelled / "squares")
    raw = np.concatenate(
        [
            one.extract(np.stack([samples.pixels(i, one.side) for i in range(24)]))
            for one in extractors()
        ],
        axis=1,
    )
    logits = ((raw - mean) / deviation) @ weight.T + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    out = predicted(labelled / "out.csv")
    np.testing.assert_allclose(p.max(axis=1), [out[i][1] for i in samples.ids], atol=2e-3)


def test_onnx_runtime_gives_the_probabilities_of_predict(labelled: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}")
    import onnxruntime

    run("export", "p", "m.onnx")
    run("predict", "p", "out.csv")
    session = onnxruntime.InferenceSession(
        str(labelled / "m.onnx"), providers=["CPUExecutionProvider"]
    )
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == ["red", "blue"]
    samples = images(labelled / "squares")
    for ids in (range(24), range(3)):  # any number of images
        given = {
            one.name: np.stack([samples.pixels(i, int(one.name.split("_")[1])) for i in ids])
            for one in session.get_inputs()
        }
        (p,) = session.run(None, given)
        out = predicted(labelled / "out.csv")
        expected = [out[samples.ids[i]][1] for i in ids]
        np.testing.assert_allclose(p.max(axis=1), expected, atol=2e-3)


def test_other_images_are_predicted_as_the_projects_own(labelled: Path) -> None:
    run("predict", "p", "own.csv")
    run("predict", "p", "other.csv", "--data", "squares")
    assert predicted(labelled / "other.csv") == predicted(labelled / "own.csv")
    make_squares(labelled / "few", 2)
    run("predict", "p", "few.csv", "--data", "few")
    own = predicted(labelled / "own.csv")
    assert predicted(labelled / "few.csv") == {
        i: own[i] for i in ("square-000.png", "square-001.png")
    }


def test_a_model_file_alone_predicts_new_photographs(labelled: Path) -> None:
    run("export", "p", "m.safetensors")
    run("predict", "p", "own.csv")
    make_squares(labelled / "new" / "test", 3)  # as a split is called: predicted all the same
    (labelled / "new" / "broken.png").write_bytes(b"no image")
    (labelled / "p").rename(labelled / "gone")
    said = run("predict", "m.safetensors", "new.csv", "--data", "new")
    assert "3 predictions by a model of 12 labels" in said
    assert "1 sample cannot be read" in said
    own = predicted(labelled / "own.csv")
    assert predicted(labelled / "new.csv") == {
        f"test/square-00{i}.png": own[f"square-00{i}.png"] for i in range(3)
    }


def test_other_images_without_one_that_can_be_read_are_refused(labelled: Path) -> None:
    run("export", "p", "m.safetensors")
    (labelled / "new").mkdir()
    (labelled / "new" / "broken.png").write_bytes(b"no image")
    for source in ("p", "m.safetensors"):
        said = run("predict", source, "new.csv", "--data", "new", code=3)
        assert "images that can be read in new but none can be decoded" in said
        assert not (labelled / "new.csv").exists()


def test_what_is_left_out_of_other_images_is_told(labelled: Path) -> None:
    run("export", "p", "m.safetensors")
    make_squares(labelled / "new", 2)
    (labelled / "new" / "a.jxl").write_bytes(b"")
    for source in ("p", "m.safetensors"):
        said = run("predict", source, "new.csv", "--data", "new")
        assert "Left out 1 file of the kind .jxl" in said


def test_files_that_are_no_model_are_refused(labelled: Path) -> None:
    run("export", "p", "m.safetensors")
    tensors, about = read_safetensors(labelled / "m.safetensors")

    def refused(words: str, code: int = 4) -> None:
        assert words in run("predict", "other.safetensors", "o.csv", "--data", "squares", code=code)
        assert not (labelled / "o.csv").exists()

    other = labelled / "other.safetensors"
    write_safetensors(other, {"fc.weight": torch.zeros(2, 3)}, {})
    refused("it has no 'classes'")
    write_safetensors(other, {"fc.weight": torch.zeros(2, 3)}, about)
    refused("it holds fc.weight")
    write_safetensors(other, {**tensors, "bias": torch.zeros(3)}, about)
    refused("shapes")
    write_safetensors(other, {**tensors, "bias": torch.full((2,), torch.nan)}, about)
    refused("not finite")
    write_safetensors(other, tensors, {**about, "kind": "boxes"})
    refused("'boxes'")
    write_safetensors(other, tensors, {**about, "features": "columns: 1 of texts"})
    refused("texts or rows", 2)
    write_safetensors(other, tensors, {**about, "features": STATISTICS + ", with ears"})
    refused("with ears", 2)
    other.write_bytes(b"no model")
    refused("readable safetensors")
    assert "--data FOLDER" in run("predict", "m.safetensors", "o.csv", code=2)
    (labelled / "m.onnx").write_bytes(b"onnx")
    assert "onnxruntime" in run("predict", "m.onnx", "o.csv", "--data", "squares", code=4)


def test_refusals(labelled: Path) -> None:
    (labelled / "t.csv").write_text("text\nfine day\npoor day\nfine night\n")
    run("init", "t", "--data", "t.csv", "--classes", "good,bad")
    pytest.importorskip("onnx", reason="needs onnx")
    assert "takes pixels" in run("export", "t", "m.onnx", code=2)
    run("init", "new", "--data", "squares", "--classes", "red,blue")
    assert "labels of two classes" in run("export", "new", "m.safetensors", code=3)


def test_a_new_image_costs_its_own_features_alone(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, before = take_features(labelled / "p", images(labelled / "squares"))
    decoded: list[str] = []
    pixels = FolderImages.pixels

    def counted(self: FolderImages, position: int, size: int) -> np.ndarray:
        decoded.append(self.ids[position])
        return pixels(self, position, size)

    monkeypatch.setattr(FolderImages, "pixels", counted)
    *_, again = take_features(labelled / "p", images(labelled / "squares"))
    assert decoded == []
    np.testing.assert_array_equal(again.values, before.values)
    (labelled / "squares" / "square-000.png").rename(labelled / "squares" / "new.png")
    (labelled / "squares" / "broken.png").write_bytes(b"no image")
    *_, later = take_features(labelled / "p", images(labelled / "squares"))
    assert set(decoded) == {"new.png", "broken.png"}
    assert np.isnan(later.values).all(axis=1).sum() == 1


def test_features_that_are_stored_already_come_all_at_once(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the model of the quick ones alone would be measured whenever a project is opened."""
    quick = Extractor("means", 8, lambda pixels: pixels.mean(axis=(2, 3), dtype=np.float32))
    slow = Extractor("deviations", 8, lambda pixels: pixels.std(axis=(2, 3), dtype=np.float32))
    monkeypatch.setattr(extraction, "extractors", lambda: [quick, slow])
    project, squares = labelled / "p", labelled / "squares"
    (squares / "broken.png").write_bytes(b"no image")
    both, methods = "means, with deviations", ["means", "means, with deviations"]
    assert [one.method for one in take_features(project, images(squares))] == methods
    assert [one.method for one in take_features(project, images(squares))] == [both]
    (squares / "square-000.png").rename(squares / "new.png")
    assert [one.method for one in take_features(project, images(squares))] == methods


def test_no_flipped_bit_of_kept_features_is_taken(labelled: Path) -> None:
    *_, before = take_features(labelled / "p", images(labelled / "squares"))
    blocks = sorted((labelled / "p" / "features").rglob("*.npy"))
    assert blocks
    for block in blocks:
        data = bytearray(block.read_bytes())
        data[len(data) // 2] ^= 1
        block.write_bytes(data)
        with pytest.warns(UserWarning, match="is damaged.*Its features are computed again"):
            *_, again = take_features(labelled / "p", images(labelled / "squares"))
        np.testing.assert_array_equal(again.values, before.values)


def test_a_full_disk_is_one_error_and_leaves_the_old_file(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (labelled / "m.safetensors").write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("upslope.checkpoints.save_file", full)
    assert "m.safetensors but it is full" in run("export", "p", "m.safetensors", code=6)
    assert (labelled / "m.safetensors").read_bytes() == b"old"
