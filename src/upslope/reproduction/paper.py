"""The numbers that the paper prints: the only ones of a reproduction that are typed in.

Tianyang Wang et al., Boosting Active Learning via Improving Test Performance, AAAI 2022. Strategies
are called as `upslope list strategies` calls them; CIFAR-10 where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BUDGETS = (10, 15, 20, 25, 30, 35, 40)
"""Labels, in percent of the pool, after which a model is trained (all but ImageNet's)."""
K = 2500
"""Samples selected in each cycle on CIFAR-10: 5% of 50,000."""
CANDIDATES = 25_000
"""Candidates in each cycle, 10 K (A.8)."""
POOL = 50_000

TABLE_1: Mapping[str, tuple[int, ...]] = {
    "core-set": (217, 230, 284, 339, 329, 289, 255),
    "vaal": (268, 259, 215, 231, 256, 240, 256),
    "ll4al": (391, 893, 1084, 1710, 1698, 2035, 1817),
    "sraal": (506, 819, 1120, 1765, 1842, 2133, 2196),
    "expected-gradnorm": (703, 980, 1216, 1942, 2318, 2427, 2448),
    "entropy-gradnorm": (677, 932, 1141, 1993, 2317, 2429, 2443),
}
"""Samples, out of K, among the K of largest gradient norm, at `BUDGETS`."""

TABLE_2 = (2290, 2377, 2396, 2432, 2449, 2438, 2482)
"""Samples, out of K, that Eq. 5 selects and Eq. 3 too, in cycles 0 to 6."""

TABLE_3: Mapping[str, tuple[float, ...]] = {
    "mc-dropout": (16.14, 10.25, 9.47, 8.77, 8.24, 7.35),
    "core-set": (14.59, 12.73, 10.88, 9.95, 8.92, 8.31),
    "vaal": (15.01, 12.24, 11.08, 9.66, 8.57, 8.08),
    "ll4al": (13.83, 10.7, 8.89, 8.78, 7.64, 7.23),
    "sraal": (14.09, 11.55, 10.24, 8.62, 8.01, 6.94),
    "expected-gradnorm": (12.74, 10.04, 8.06, 7.05, 6.09, 5.66),
    "entropy-gradnorm": (13.05, 9.9, 7.76, 6.79, 6.29, 5.65),
}
"""Training less test accuracy in points, at `BUDGETS` from the second on."""

TABLE_4 = (2488, 2481, 2466, 2439, 2386, 2255)
"""Samples, out of K, whose norm (Eq. 6) is no larger in the next cycle; cycles 1 to 6."""
TABLE_5 = (2487, 2477, 2467, 2447, 2388, 2250)
"""The same by Eq. 7."""

TABLE_6: Mapping[str, float] = {
    "mc-dropout": 91.23,
    "core-set": 90.12,
    "vaal": 90.97,
    "ll4al": 92.32,
    "sraal": 92.68,
    "expected-gradnorm": 94.1,
    "entropy-gradnorm": 93.16,
}
"""Test accuracy in percent of ResNet-50 trained on the 40% that ResNet-18 selected."""

SVHN_TEST = (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595)
"""Test samples of each class of SVHN, as Tables 7 and 8 print them."""
TABLE_7 = (96.85, 97.51, 97.06, 93.82, 97.23, 95.22, 96.81, 95.84, 96.39, 95.17)
"""Test accuracy in percent by class of SVHN at 40%, expected-gradnorm."""
TABLE_8 = (97.19, 96.96, 97.42, 93.34, 97.42, 95.85, 96.46, 96.04, 96.02, 94.55)
"""The same, entropy-gradnorm."""

TABLE_9: Mapping[str, tuple[float, ...]] = {
    "mc-dropout": (4.38, 4.49, 6.35, 1.43),
    "core-set": (11.13, 11.25, 26.61, 1.01),
    "vaal": (15.21, 15.83, 22.76, 17.58),
    "ll4al": (2.51, 2.18, 3.42, 0.86),
    "expected-gradnorm": (2.33, 2.42, 3.28, 0.93),
    "entropy-gradnorm": (2.29, 2.36, 3.17, 0.9),
}
"""Hours of seven cycles, training and selection together, on one RTX 2080 Ti."""
TABLE_9_DATA = ("CIFAR-10", "CIFAR-100", "SVHN", "Caltech-101")

ENTROPY_AT_25 = 91.77
"""Test accuracy of entropy-gradnorm with 12,500 labels (text)."""
ENTROPY_AT_40 = 94.39
"""Its best, with 20,000 labels (text)."""
FULL_DATA = 93.16
"""The same network "from scratch with the full dataset" (text)."""


@dataclass(frozen=True)
class Protocol:
    """How an experiment was made, in the words that `output.protocol_diff` compares."""

    data: str
    network: str
    training: str
    budgets: str
    candidates: str
    seeds: str


_SGD = "SGD 0.1, momentum 0.9, weight decay 5e-4"
_TENFOLD = "10 x the budget at random (A.8); all (main text)"

CIFAR = Protocol(
    "CIFAR-10, 50,000 to choose from, 10,000 to test on",
    "ResNet-18 for 32x32",
    f"200 epochs, batch 128, {_SGD}, x 0.1 at 160",
    "10% to 40% in 7 steps",
    _TENFOLD,
    "3",
)
CLASSIFICATION = Protocol(
    "CIFAR-10, CIFAR-100, SVHN, Caltech-101",
    "ResNet-18",
    "200 epochs, batch 128, SGD 0.1, x 0.1 at 160; Caltech-101: 50, 64, 0.01, at 40",
    "10% to 40% in 7 steps",
    _TENFOLD,
    "3",
)
SVHN = Protocol(
    "SVHN, 73,257 to choose from, 26,032 to test on",
    CIFAR.network,
    CIFAR.training,
    CIFAR.budgets,
    _TENFOLD,
    "3",
)
LARGE = Protocol(
    "ImageNet, 1.28 million to choose from; Cityscapes, 2,975, cropped to 688x688",
    "VGG-16; DRN-D-22",
    "100 epochs, batch 64, Adam 0.1; 50 epochs, batch 8, Adam 1e-4",
    "10% to 30% in 5 steps; 10% to 40% in 7",
    _TENFOLD,
    "2; 3",
)
CRYOET = Protocol(
    "50c-clean and 50c-snr005: 50 classes, 24,000 to choose from, 1,000 to test on",
    "ResNet-18 in 3D",
    f"100 epochs, {_SGD}, x 0.1 at 80; batch size not stated",
    "10% to 40% in 7 steps",
    _TENFOLD,
    "3",
)
