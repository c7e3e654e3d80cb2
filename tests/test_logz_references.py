"""Annealing and ladders against numbers that others have published or worked out exactly."""

import functools
import json
import math
import pathlib

import pyro
import pytest
import torch
from laws import assert_close
from torch import tensor

from pyro_ebm import Boltzmann, logz
from pyro_ebm.energies import RBM, Ising
from pyro_ebm.energies.kaufman import CRITICAL_COUPLING
from pyro_ebm.kernels.transition import seeded_generator
from pyro_ebm.logz.annealing import Direction, anneal
from pyro_ebm.logz.path import Path, Walkers
from pyro_ebm.logz.plan import Plan


class Independent(Path):
    """From N(0, 1) to N(0, 1 / precision), with an exact draw at each rung in place of a move."""

    def __init__(self, precision):
        self.precision = precision

    def locate(self, z):
        excess = (self.precision - 1) / 2 * z.double().square()
        return Walkers(z, excess - 0.5 * math.log(2 * math.pi))

    def draw_base(self, num_walkers, generator):
        return self.locate(torch.randn(num_walkers, generator=generator))

    def draw_target(self, num_walkers):
        return self.locate(torch.randn(num_walkers) / math.sqrt(self.precision))

    def move(self, walkers, beta, step_size, num_steps, generator):
        precision = 1 + (self.precision - 1) * beta
        z = torch.randn(len(walkers.z), generator=generator) / precision.sqrt()
        return self.locate(z), torch.ones_like(z)

    def refitted(self, walkers):
        return self


MEAN_WORK = {
    (4.0, 1): -1.5,
    (4.0, 5): -0.8192417876241406,
    (4.0, 10): -0.7528805149324723,
    (4.0, 50): -0.704537751863084,
    (4.0, 100): -0.6988073334495736,
    (4.0, 1000): -0.6937100321221091,
    (0.25, 1): 0.375,
    (0.25, 5): 0.5942417876241406,
    (0.25, 10): 0.6403805149324724,
    (0.25, 50): 0.6820377518630839,
    (0.25, 100): 0.6875573334495736,
    (0.25, 1000): 0.6925850321221091,
    (25.0, 1): -12.0,
    (25.0, 5): -3.314864234820173,
    (25.0, 10): -2.3695355250728234,
    (25.0, 50): -1.7340213432156169,
    (25.0, 100): -1.6694206067942539,
    (25.0, 1000): -1.6152218726520828,
}
"""The mean of log w less that of the base's constant, by the last precision and the number of
rungs K: with precisions :math:`\\lambda_k` from 1 in equal steps of s, minus the sum of
s / (2 lambda). What it lacks of log Z is about :math:`(\\lambda - 1)^2 / (4 \\lambda K)`."""


@pytest.mark.parametrize(("precision", "num_rungs"), MEAN_WORK)
def test_annealing_loses_as_much_as_its_number_of_rungs_says(precision, num_rungs):
    ends = tensor([0.0, 1.0], dtype=torch.float64)
    made = Plan(Independent(precision), ends, ends, ends + 1, torch.zeros(2, 1), 1.0)
    generator = seeded_generator(torch.device("cpu"))
    betas = made.rungs(num_rungs)
    num_walkers = 40_000 if num_rungs < 1000 else 4000
    log_w, _ = anneal(made, made.path.draw_base(num_walkers, generator), betas, generator)
    work = log_w[-1] - 0.5 * math.log(2 * math.pi)
    error = work.std() / math.sqrt(len(work))
    assert_close(work.mean(), MEAN_WORK[precision, num_rungs], error)
    log_ratio = -0.5 * math.log(precision)
    if num_rungs >= 50:
        loss = (precision - 1) ** 2 / (4 * precision * num_rungs)
        assert log_ratio - MEAN_WORK[precision, num_rungs] == pytest.approx(loss, rel=0.1)
    if (precision, num_rungs) != (0.25, 1):  # where the weights have no variance
        found = Direction.of(log_w[-1])
        assert_close(found.value, 0.5 * math.log(2 * math.pi) + log_ratio, found.std_error)


TORI = {
    (3, CRITICAL_COUPLING): 9.020213400944334,
    (4, CRITICAL_COUPLING): 15.521915458755283,
    (4, 0.3): 12.785523325713681,
    (8, 0.4): 56.59938876042538,
    (10, 0.2): 73.45309780383303,
    (10, 0.5): 103.27297541824895,
    (16, CRITICAL_COUPLING): 238.64225663513287,
}
"""log Z by Kaufman's formula (1949), as in test_lattice."""


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [logz.ais, logz.thermodynamic])
@pytest.mark.parametrize(("side", "coupling"), TORI)
def test_tori_are_within_two_hundredths_of_a_nat(side, coupling, estimator):
    pyro.set_rng_seed(1)
    z = estimator(Boltzmann(Ising((side, side), coupling)))
    error = abs(z.value - TORI[side, coupling])
    assert error < max(0.02 * side / 10, 3 * z.std_error)
    assert z.lower < TORI[side, coupling] < z.upper
    assert z.std_error < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [logz.ais, functools.partial(logz.smc, num_particles=8192)], ids=["ais", "smc"]
)
def test_a_critical_torus_of_a_thousand_spins(estimator):
    """Single spins take too long to turn its domains; clusters do not."""
    pyro.set_rng_seed(0)
    exact = 952.6480795485427
    z = estimator(Boltzmann(Ising((32, 32), CRITICAL_COUPLING)))
    assert abs(z.value - exact) < min(3 * z.std_error, 0.1)
    assert z.lower < exact < z.upper


DIGITS = json.loads((pathlib.Path(__file__).parent / "data" / "rbm_digits.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("num_rungs", "tol"), [(1000, 0.2), (100, 0.5)])
def test_a_machine_of_digits_by_a_hundred_walkers(num_rungs, tol):
    """64 + 10 units; the exact value is the sum over the hidden ones."""
    machine = RBM(*(tensor(DIGITS[name]) for name in "Wbc"))
    pyro.set_rng_seed(2)
    z = logz.ais(Boltzmann(machine), num_chains=112, num_rungs=num_rungs, reverse=False)
    assert abs(z.value - 51.31900717119771) < tol
    assert_close(z.value, 51.31900717119771, z.std_error)
