"""Weights on disk: ours as safetensors, foreign ones read without running any of their code."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from upslope.counts import list_some
from upslope.errors import ModelError
from upslope.files import read_digested_json, write_atomically
from upslope.memory import raise_memory_error

_HEADER = "upslope"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_MOST_NAMES = 5
# What torch says: of more than tensors, of pickles unlike its own, and of compiled networks.
_OBJECTS = "(?i)unsupported|unrecognized|not an allowed"
_PICKLED_OTHERWISE = "Unsupported operand"
_PROGRAM = "TorchScript"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Write tensors and a JSON header, whole or not at all; returns the file's SHA-256.

    Tensors that share memory (tied weights) are written once a name.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    metadata = {_HEADER: json.dumps(header, sort_keys=True)}
    digest = ""

    def write(temporary: Path) -> None:
        nonlocal digest
        write_safetensors(temporary, plain, metadata)
        digest = file_sha256(temporary)

    write_atomically(path, write)
    return digest


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file of safetensors; what the system says is an OSError, as of other files.

    tensors: contiguous, and none of them shares memory with another.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        code = 28 if "os error 28" in str(error) or "No space" in str(error) else 5
        raise OSError(code, str(error)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file that `save_tensors` wrote, and its header.

    Raises:
        ModelError: missing, torn or not safetensors.
    """
    tensors, metadata = read_safetensors(path)
    try:
        return tensors, json.loads(metadata.get(_HEADER, "{}"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, and its metadata as they stand.

    Raises:
        ModelError: missing, torn or not safetensors.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise_memory_error(error, of_file=True)
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"Expected {path} to be a readable safetensors file but got: {error}. Give another "
        "checkpoint, or write this one again."
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: Path) -> Path:
    """Return the path of the record that is kept beside a file of weights."""
    return path.with_suffix(".json")


def read_sound_record(path: Path, key: str, consequence: str) -> dict[str, Any] | None:
    """Return the record of a file of weights that is sound, and was made under a key.

    None where there is none, or of another key; a damaged file or record is told in a warning.

    path: of the weights. key: as the record has it, beside `sha256`, the file's. consequence: what
    happens where the file is damaged, as "it is learnt again".
    """
    record = read_digested_json(record_of(path), consequence)
    if record is None or record.get("key") != key or not path.is_file():
        return None
    if file_sha256(path) != record.get("sha256"):
        warnings.warn(f"{path} is damaged: {consequence}.", stacklevel=3)
        return None
    return record


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Load a checkpoint into `model`, in place: safetensors, or .pt/.pth with weights only.

    A foreign file may hold the weights themselves or a dictionary with them under "state_dict" or
    "model"; a "module." before every name (DataParallel) is dropped.

    Raises:
        ModelError: unreadable, holding more than weights, or of another network; the message
            names the first keys that are missing, unexpected or of another shape.
    """
    path = Path(path)
    tensors = read_weights(path)
    check_network(model, tensors, path)
    model.load_state_dict(tensors)


def check_same_network(model: nn.Module, path: Path) -> None:
    """Raise ModelError unless `model` has the weights, by names and shapes, of a file of ours.

    path: what `save_tensors` wrote, of which the header alone is read; a missing or damaged one
    tells nothing.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise_memory_error(error, of_file=True)
        return
    _check_shapes(model, shapes, path)


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, as `load_weights` takes them.

    Raises:
        ModelError: missing, unreadable, or holding more than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"Expected a checkpoint at {path} but there is no such file.")
    tensors = _read(path)
    for prefix in ("module.", "_orig_mod."):
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def trained_classes(build: Callable[[int], nn.Module], tensors: Mapping[str, Tensor]) -> int | None:
    """For how many classes a checkpoint was trained; `build` makes its network for a number.

    Networks for two and for three classes show which shape grows with the number, and by how
    much. None where none does: the network, or the part that the checkpoint holds, is fixed.
    At least two: loading the weights is what refuses others.
    """
    two, three = (build(n).state_dict() for n in (2, 3))
    for name, value in two.items():
        if name not in three or name not in tensors:
            continue
        sizes = zip(value.shape, three[name].shape, tensors[name].shape, strict=False)
        for small, large, size in sizes:
            if small != large:
                return max(2, int(2 + (size - small) // (large - small)))
    return None


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    content = _read_torch(path)
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            _check_only_weights(path, content, key)
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        content_of = (
            list(content)[:_MOST_NAMES] if isinstance(content, dict) else type(content).__name__
        )
        raise ModelError(
            f"Expected {path} to hold a state dict, or one under {', '.join(_WRAPPERS[:3])}, but "
            f"found {content_of}. Save `model.state_dict()`."
        )
    _check_readable(path, content)
    return dict(content)


def _check_only_weights(path: Path, content: Mapping[str, Any], key: str) -> None:
    """Raise ModelError where other numbers stand for the same weights, as their moving average.

    content: of the file. key: that of the weights that would be taken.
    """
    names = _names_of_weights(content[key])
    others = [
        str(other)
        for other, value in content.items()
        if other != key and isinstance(value, dict) and names and _names_of_weights(value) == names
    ]
    if others:
        all_keys = list_some([key, *others], _MOST_NAMES)
        raise ModelError(
            f"Expected {path} to hold one set of weights but it has {all_keys}, "
            "and each may be meant. Save one alone: "
            f"torch.save(torch.load('{path.name}', weights_only=True)['{key}'], 'one.pth')."
        )


def _names_of_weights(tensors: Mapping[Any, Any]) -> set[str]:
    """Return the names without what torch's wrappers add to them (`DataParallel`, `swa_utils`)."""
    return {str(name).removeprefix("module.") for name in tensors if name != "n_averaged"}


def _check_readable(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError where a tensor has no numbers that could be copied one by one."""
    others = [
        name
        for name, value in tensors.items()
        if value.is_meta or value.is_quantized or value.is_nested or value.layout != torch.strided
    ]
    if others:
        raise ModelError(
            f"Expected {path} to hold plain tensors but these are sparse, quantised, nested or on "
            f"the meta device, without numbers: {list_some(others, _MOST_NAMES)}. Save the "
            "network's plain weights, `model.state_dict()`."
        )


def _read_torch(path: Path) -> Any:
    """What a file of `torch.save` holds, where that is tensors and plain containers of them."""
    is_torch = True
    try:
        with path.open("rb") as file:
            is_torch = file.read(2).startswith((b"PK", b"\x80"))  # a zip archive, or a pickle
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the refusal below says what matters of these
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn pickle stream fails in any way there is
        raise_memory_error(error, of_file=True)
        raise _refusal(path, error, is_torch) from error


def _refusal(path: Path, error: Exception, is_torch: bool) -> ModelError:
    """The error for a file that torch does not read; `is_torch`: it begins as its files do."""
    said = str(error)
    if is_torch and _PICKLED_OTHERWISE in said:
        return ModelError(
            f"Expected {path} to be written by `torch.save` but it is damaged, or a pickle of "
            "another kind (`pickle.dump`, or another `pickle_protocol`), which cannot be read "
            "without running code in it. Save with `torch.save(model.state_dict(), path)`."
        )
    if is_torch and (_PROGRAM in said or _is_of_objects(error)):
        return ModelError(
            f"Expected {path} to hold tensors alone but it holds other objects, which could "
            "run code when loaded. Save `model.state_dict()` instead of the whole model."
        )
    # Of what torch says, the first line is advice to run whatever code the file holds.
    reason = said.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    if (
        not is_torch
        or isinstance(error, KeyError)
        or reason.startswith("Weights only")
        or not reason
    ):
        reason = "its content is neither"
    return ModelError(
        f"Expected {path} to be a PyTorch or safetensors checkpoint but: {reason}. Give "
        "another, or save `model.state_dict()` again."
    )


def _is_of_objects(error: Exception) -> bool:
    return isinstance(error, pickle.UnpicklingError) and bool(re.search(_OBJECTS, str(error)))


def check_network(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ModelError unless the tensors of a file have the names and shapes of the model's.

    Where a weight of the model is a floating-point number, the file's must be one too: of others
    the copy would be rounded, or real parts alone.
    """
    _check_shapes(model, {name: tuple(value.shape) for name, value in tensors.items()}, path)
    others = [
        f"{name} ({tensors[name].dtype})"
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not tensors[name].is_floating_point()
    ]
    if others:
        raise ModelError(
            f"Expected {path} to hold floating-point weights but got "
            f"{list_some(others, _MOST_NAMES)}. Save the network's before it is converted."
        )


def _check_shapes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    weights = model.state_dict()
    problems = []
    for words, names in (
        ("missing", [k for k in weights if k not in shapes]),
        ("unexpected", [k for k in shapes if k not in weights]),
        (
            "of another shape",
            [
                f"{k} {shapes[k]} instead of {tuple(weights[k].shape)}"
                for k in weights
                if k in shapes and shapes[k] != tuple(weights[k].shape)
            ],
        ),
    ):
        if names:
            problems.append(f"{len(names)} {words}: {list_some(names, _MOST_NAMES)}")
    if problems:
        raise ModelError(
            f"Expected {path} to fit {type(model).__name__} but its weights are of another "
            f"network: {'; '.join(problems)}. Give the model, and the number of classes, that "
            "this checkpoint was trained with."
        )
