"""What the targets are conditioned on: the same arrays for torch and for JAX."""

import json
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"

DTYPES = {"gp_pois_regr": "float64"}
"""Where float32 will not do: the covariance of this process is singular to its rounding."""

NUM_DIMS = 100
CONDITION = 1e4


def dtype_of(name):
    return DTYPES.get(name, "float32")


def observations(name):
    """Returns arrays by name, in float64."""
    if name in MADE:
        return MADE[name]()
    kept = json.loads((DATA / f"{name}.json").read_text())
    return {key: np.asarray(value, dtype=np.float64) for key, value in kept.items()}


def _breast_cancer():
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return {"x": (x - x.mean(0)) / x.std(0), "y": y.astype(np.float64)}


def _precision_axis():
    return {"precision": np.geomspace(1 / np.sqrt(CONDITION), np.sqrt(CONDITION), NUM_DIMS)}


def _precision_rotated():
    noise = np.random.default_rng(0).standard_normal((NUM_DIMS, NUM_DIMS))
    rotation, _ = np.linalg.qr(noise)
    precision = rotation * _precision_axis()["precision"] @ rotation.T
    return {"precision": (precision + precision.T) / 2}


MADE = {
    "logistic": _breast_cancer,
    "gaussian_axis": _precision_axis,
    "gaussian_rotated": _precision_rotated,
    "banana": dict,
    "funnel": dict,
}
