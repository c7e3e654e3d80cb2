"""The error bars of log Z are right: 100 repetitions, of which 88 to 99 hold the truth."""

import math

import pytest

calibration = pytest.importorskip("benchmarks.calibration")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gaussian", "two modes", "ising 8x8", "rbm on digits"])
def test_of_a_hundred_intervals_about_ninety_five_hold_the_truth(target):
    for estimator, found in calibration.coverage(target).items():
        assert 88 <= found.covered <= 99, f"{estimator}: {found}"
        assert abs(found.mean_z) < 5 / math.sqrt(found.total), f"{estimator}: {found}"
        assert found.lower >= 88, f"{estimator}: {found}"
