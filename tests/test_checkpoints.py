"""Checkpoints: ours, foreign ones, and those of another network."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from small_tasks import perceptron
from upslope import checkpoints
from upslope.checkpoints import load_tensors, load_weights, save_tensors, trained_classes
from upslope.errors import ModelError, RunError


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return all(torch.equal(mine[k], other[k]) for k in mine)


def test_ours_comes_back(tmp_path: Path) -> None:
    a, b, file = perceptron(), perceptron(), tmp_path / "a.safetensors"
    sha = save_tensors(file, a.state_dict(), {"cycle": 3})
    load_weights(b, file)
    assert same(a, b)
    assert load_tensors(file)[1] == {"cycle": 3}
    assert sha == checkpoints.file_sha256(file)
    assert sha == save_tensors(tmp_path / "b.safetensors", b.state_dict(), {"cycle": 3})


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_foreign_files(tmp_path: Path, wrap: str | None, prefix: str) -> None:
    a, b, file = perceptron(), perceptron(), tmp_path / "a.pth"
    state = {prefix + k: v for k, v in a.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, file)
    load_weights(b, file)
    assert same(a, b)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "whole.pt"
    torch.save(perceptron(), file)
    with pytest.raises(ModelError, match="other objects"):
        load_weights(perceptron(), file)


def test_another_network_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_tensors(file, perceptron(width=8).state_dict(), {})
    with pytest.raises(
        ModelError, match=r"of another shape: 0.weight \(8, 2\) instead of \(16, 2\)"
    ):
        load_weights(perceptron(width=16), file)
    model = perceptron(width=8, norm=True)
    before = model[0].weight.clone()
    with pytest.raises(ModelError, match=r"5 missing: 1.weight, 1.bias"):
        load_weights(model, file)
    assert torch.equal(model[0].weight, before)


def test_torn_missing_and_empty_files(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with pytest.raises(ModelError, match="no such file"):
        load_weights(perceptron(), file)
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(b"torn")
        with pytest.raises(ModelError):
            load_weights(perceptron(), tmp_path / name)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, model = tmp_path / "a.safetensors", perceptron()
    save_tensors(file, model.state_dict(), {})
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(RunError, match="it is full"):
        save_tensors(file, perceptron().state_dict(), {})
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


def test_files_with_code_are_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    torch.save({"weight": Code()}, tmp_path / "code.pt")
    (tmp_path / "junk.pt").write_bytes(b"hello junk")
    (tmp_path / "README.md").write_bytes(b"# A text, of which a pickle could begin so")
    neither = "its content is neither"
    for name, words in (
        ("code.pt", "could run code"), ("junk.pt", neither), ("README.md", neither),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=words) as caught:
            load_weights(torch.nn.Linear(2, 2), tmp_path / name)
        assert "weights_only" not in str(caught.value)


def test_of_files_that_torch_refuses_no_advice_and_no_warning_of_its_own_is_passed_on(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = torch.nn.Linear(2, 2)
    torch.jit.script(model).save(str(tmp_path / "script.pt"))
    torch.save(model.state_dict(), tmp_path / "protocol.pt", pickle_protocol=4)
    (tmp_path / "dump.pt").write_bytes(pickle.dumps(dict(model.state_dict())))
    recwarn.clear()  # of scripting, which torch calls deprecated
    for name, words in (
        ("script.pt", "could run code"),
        ("protocol.pt", "pickle_protocol"),
        ("dump.pt", "pickle.dump"),
    ):
        with pytest.raises(ModelError, match=words) as caught:
            load_weights(model, tmp_path / name)
        assert "weights_only" not in str(caught.value)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (lambda x: x.to("meta"), "plain tensors.*weight, bias"),
        (lambda x: x.to_sparse(), "plain tensors.*weight, bias"),
        (lambda x: (10 * x).int(), "floating-point.*weight .torch.int32., bias"),
        (lambda x: x * 1j, "floating-point.*complex64"),
    ],
    ids=["meta", "sparse", "integers", "complex"],
)
def test_weights_that_cannot_be_copied_as_they_are_are_refused(
    convert: Callable[[Tensor], Tensor], words: str, tmp_path: Path
) -> None:
    model = torch.nn.Linear(2, 2)
    torch.save({k: convert(v) for k, v in model.state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=words):
        load_weights(model, tmp_path / "w.pt")


def test_the_shapes_of_a_checkpoint_tell_its_number_of_classes() -> None:
    def build(classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 3 * classes + 1), nn.Linear(3 * classes + 1, classes))

    assert trained_classes(build, build(7).state_dict()) == 7
    assert trained_classes(lambda _: nn.Linear(4, 5), nn.Linear(4, 5).state_dict()) is None
    assert trained_classes(build, nn.Bilinear(2, 2, 2).state_dict()) is None


@pytest.mark.parametrize("others", [("state_dict_ema",), ("model", "ema")])
def test_weights_beside_their_moving_average_are_refused(
    tmp_path: Path, others: tuple[str, ...]
) -> None:
    """The first were taken, without a word, where the average is what its figures are of."""
    model = nn.Linear(2, 3)
    weights = model.state_dict()
    content = {"state_dict": weights, "epoch": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "one.pt")
    load_weights(nn.Linear(2, 3), tmp_path / "one.pt")
    average = torch.optim.swa_utils.AveragedModel(model).state_dict()
    torch.save(content | dict.fromkeys(others, average), tmp_path / "two.pt")
    with pytest.raises(ModelError, match=rf"state_dict.*{others[0]}.*Save one alone: torch\.save"):
        load_weights(model, tmp_path / "two.pt")
