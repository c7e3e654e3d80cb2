"""Data sets by name, or from a file: split, checked, and told what kind they are."""

from __future__ import annotations

__all__ = ["DATASETS", "DataKind", "Dataset", "check_spread", "load"]

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from ..datasets import (
    Toy,
    checkerboard,
    digits,
    eight_gaussians,
    pinwheel,
    rings,
    shuffle_pixels,
    two_modes,
    two_moons,
    upside_down,
)
from ..zoo.base import check_data

DataKind = Literal["plane", "table", "images", "binary"]
"""Points ``(n, 2)``, rows ``(n, columns)``, images ``(n, channels, height, width)``; and points of
zeros and ones, of any shape."""


class Dataset(NamedTuple):
    """Data to fit to, data to measure by, and what is known of them."""

    name: str
    kind: DataKind
    train: Tensor
    test: Tensor
    ood: dict[str, Tensor]
    """Sets out of distribution, by name."""
    law: Toy | None
    """The law of the data, where it is known."""
    note: str
    """What was done to them."""


def load(source: str, *, quick: bool = False, seed: int = 0) -> Dataset:
    """Loads data by name, or an array from a ``.npy`` file, and splits them.

    A file may hold points ``(n, 2)``, rows ``(n, columns)``, or images ``(n, height, width)`` or
    ``(n, channels, height, width)``. Arrays of zeros and ones are binary data; columns of a table
    are brought to mean 0 and spread 1. A fifth of a file, drawn at random, is held out.

    Args:
        source: One of :data:`DATASETS`, or the path of a file.
        quick: Whether to make do with fewer points, where they are drawn from a known law.
        seed: The seed of draws, noise and split.

    Returns:
        The data.

    Raises:
        ValueError: If the name is unknown, or the file holds no array of numbers of these shapes,
            fewer than 25 rows, a value that is not finite, or a column without spread.

    Example:
        >>> data = load("two_moons", quick=True)
        >>> data.kind, data.train.shape, data.law is not None
        ('plane', torch.Size([2000, 2]), True)
    """
    generator = Generator().manual_seed(seed)
    if source in DATASETS:
        return DATASETS[source](source, quick, generator)
    if not source.endswith(".npy"):
        raise ValueError(
            f"there are no data named {source!r}; there are {', '.join(DATASETS)}, or pass the "
            "path of a .npy file"
        )
    return _from_array(source, _read(source), generator)


def check_spread(x: Tensor) -> None:
    """Checks that no column of real data is constant.

    Args:
        x: Points, with shape ``(n, *event)``.

    Raises:
        ValueError: If one is.
    """
    constant = (x == x[:1]).flatten(1).all(0).nonzero().flatten().tolist()
    if constant:
        some = f"{constant[:5]}{' and more' if len(constant) > 5 else ''}"
        raise ValueError(
            f"{len(constant)} columns of the data are constant, with no density: {some} (counted "
            "flat, from 0); drop them, or add a little noise"
        )


_TOYS: dict[str, Toy] = {
    "two_moons": two_moons,
    "two_modes": two_modes,
    "eight_gaussians": eight_gaussians,
    "rings": rings,
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
}


def _toy(name: str, quick: bool, generator: Generator) -> Dataset:
    law = _TOYS[name]
    train, test = (law(n, generator) for n in ((2000, 500) if quick else (5000, 1000)))
    return Dataset(name, "plane", train, test, {}, law, "drawn from the known law")


def _digits(name: str, quick: bool, generator: Generator) -> Dataset:
    images = digits()

    def real(x: Tensor) -> Tensor:
        return 4 * x - 2 + 0.3 * torch.randn(x.shape, generator=generator)

    train, test = real(images.train.repeat(8, 1, 1, 1)), real(images.test)
    note = (
        "pixels from -2 to 2 plus Gaussian noise of 0.3, so that they have a density; each "
        "training image with eight draws of it"
    )
    return Dataset(name, "images", train, test, _ood(test, generator), None, note)


def _binary_digits(name: str, quick: bool, generator: Generator) -> Dataset:
    images = digits(binarize=True)
    ood = _ood(images.test, generator)
    return Dataset(name, "binary", images.train, images.test, ood, None, "1 from half grey on")


def _ood(test: Tensor, generator: Generator) -> dict[str, Tensor]:
    return {
        "shuffled": shuffle_pixels(test, generator=generator),
        "upside down": upside_down(test),
    }


def _scikit_table(name: str, quick: bool, generator: Generator) -> Dataset:
    try:
        from sklearn import datasets as tables
    except ImportError as error:
        raise ImportError(f"{name} needs scikit-learn: pip install pyro_ebm[compare]") from error
    rows = getattr(tables, f"load_{name}")().data
    return _from_array(name, torch.from_numpy(rows).float(), generator)


DATASETS: dict[str, Callable[[str, bool, Generator], Dataset]] = {
    "digits": _digits,
    "digits-binary": _binary_digits,
    **dict.fromkeys(_TOYS, _toy),
    "breast_cancer": _scikit_table,
    "wine": _scikit_table,
}
"""The data that have a name."""


def _read(path: str) -> Tensor:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path!r}")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} holds no array of numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold real numbers, got dtype {array.dtype}")
    return torch.from_numpy(array.astype(np.float32))


def _from_array(name: str, x: Tensor, generator: Generator) -> Dataset:
    if x.dim() not in (2, 3, 4) or len(x) < 25 or not x[0].numel():
        raise ValueError(
            f"{name} must hold 25 points or more, with shape (n, columns), (n, height, width) or "
            f"(n, channels, height, width), got {tuple(x.shape)}"
        )
    if x.dim() == 3:
        x = x.unsqueeze(1)
    check_data(name, x, x.shape[1:])
    binary = bool(((x == 0) | (x == 1)).all())
    if not binary:
        check_spread(x)
    order = torch.randperm(len(x), generator=generator)
    test, train = x[order].split([len(x) // 5, len(x) - len(x) // 5])
    if binary:
        return Dataset(name, "binary", train, test, {}, None, "zeros and ones, as they are")
    if x.dim() == 4:
        return Dataset(name, "images", train, test, {}, None, "as they are")
    check_spread(train)
    middle, spread = train.mean(0), train.std(0)
    train, test = (train - middle) / spread, (test - middle) / spread
    kind: DataKind = "plane" if x.shape[1] == 2 else "table"
    note = "columns brought to mean 0 and spread 1"
    return Dataset(name, kind, train, test, {}, None, note)
