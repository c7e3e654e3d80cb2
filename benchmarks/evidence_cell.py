"""A cell of the evidence benchmark: one library on one target, its estimates at each budget."""

import argparse
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Target(NamedTuple):
    """A target that every library takes in the same words."""

    energy: Callable
    """From points ``(*, D)`` and the module of arrays to energies ``(*,)``."""
    dim: int
    base_scale: float
    """The standard deviation of the normal base about the origin: it covers the target."""
    log_z: float


DIM = 16
SCALES = np.geomspace(0.1, 1.0, DIM)
"""The standard deviations of the Gaussian along its axes, which are rotated."""


def _gaussian():
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.standard_normal((DIM, DIM)))[0]
    whiten, mean = axes / SCALES, generator.standard_normal(DIM)

    def energy(x, xp):
        return 0.5 * (((x - xp.asarray(mean)) @ xp.asarray(whiten)) ** 2).sum(-1)

    return Target(energy, DIM, 2.0, 0.5 * DIM * math.log(2 * math.pi) + np.log(SCALES).sum())


def _two_modes(x, xp):
    """Unit normals at -10 and 10, the second four times as heavy."""
    first, second = -0.5 * (x[..., 0] + 10) ** 2, -0.5 * (x[..., 0] - 10) ** 2
    return -xp.logaddexp(first, second + math.log(4.0))


def _banana(x, xp):
    ridge = x[..., 1] - 0.03 * (x[..., 0] ** 2 - 100)
    return 0.5 * ((x[..., 0] / 10) ** 2 + ridge**2)


TARGETS = {
    "gaussian": _gaussian(),
    "two modes": Target(_two_modes, 1, 10.0, 0.5 * math.log(2 * math.pi) + math.log(5.0)),
    "banana": Target(_banana, 2, 10.0, math.log(2 * math.pi) + math.log(10.0)),
}


def run(estimate, engine):
    """Prints the estimates of a library.

    Args:
        estimate: From a target, the budgets and the number of seeds to a dict, by method and
            budget, of the estimates of log Z from each seed and the mean number of gradients that
            one of them took.
        engine: What runs, and its version.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--budgets", required=True)
    parser.add_argument("--seeds", type=int, required=True)
    args = parser.parse_args()
    budgets = [int(budget) for budget in args.budgets.split(",")]
    found = {}
    for (method, budget), (log_z, gradients) in estimate(
        TARGETS[args.target], budgets, args.seeds
    ).items():
        cell = {"log_z": [float(value) for value in log_z], "gradients": float(gradients)}
        found.setdefault(method, {})[budget] = cell
    print(json.dumps({"engine": engine, "methods": found}))
