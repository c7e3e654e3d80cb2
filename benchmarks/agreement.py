"""Whether JAX and Pyro mean the same target: values and gradients at ten points."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import process
from benchmarks.observations import dtype_of

TOLERANCE = {"float32": 1e-4, "float64": 1e-8}
"""Of the largest value and the largest gradient; the values only up to a constant."""


def check(name, potential):
    """Raises:
    Failed: If the densities differ.
    """
    torch.manual_seed(11)
    z = potential.initialize(10)
    value, grad = (v.double().numpy() for v in potential.value_and_grad(z))
    dtype = dtype_of(name)
    with tempfile.TemporaryDirectory() as folder:
        points, out = Path(folder) / "points.npy", Path(folder) / "values.npz"
        np.save(points, z.numpy())
        words = {"target": name, "dtype": dtype, "points": points, "out": out}
        process.run("jax", "benchmarks.peers.evaluate", words, limit=120)
        theirs = np.load(out)
        off_value = np.ptp(theirs["value"] + value) / np.abs(value).max()
        off_grad = np.abs(theirs["grad"] + grad).max() / np.abs(grad).max()
    if not max(off_value, off_grad) < TOLERANCE[dtype]:
        raise process.Failed(
            f"{name}: JAX and Pyro differ by {off_value:.1e} in value, {off_grad:.1e} in gradient"
        )
