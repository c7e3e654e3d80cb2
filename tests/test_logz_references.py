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
    """From N(0, 1) to N(0, 1/4), with an exact draw at each rung in place of a move."""

    def locate(self, z):
        return Walkers(z, 1.5 * z.double().square() - 0.5 * math.log(2 * math.pi))

    def draw_base(self, num_walkers, generator):
        return self.locate(torch.randn(num_walkers, generator=generator))

    def draw_target(self, num_walkers):
        return self.locate(torch.randn(num_walkers) / 2)

    def move(self, walkers, beta, step_size, num_steps, generator):
        z = torch.randn(len(walkers.z), generator=generator) / (1 + 3 * beta).sqrt()
        return self.locate(z), torch.ones_like(z)

    def refitted(self, walkers):
        return self


MEAN_WORK = {
    1: -1.5,
    5: -0.8192417876241406,
    10: -0.7528805149324723,
    50: -0.704537751863084,
    100: -0.6988073334495736,
}
"""The mean of log w less that of the base's constant, by the number of rungs: with precisions
:math:`\\lambda_k` from 1 to 4 in equal steps, minus the sum of 3 / (2 K lambda)."""


@pytest.mark.parametrize("num_rungs", MEAN_WORK)
def test_annealing_loses_as_much_as_its_number_of_rungs_says(num_rungs):
    ends = tensor([0.0, 1.0], dtype=torch.float64)
    made = Plan(Independent(), ends, ends, ends + 1, torch.zeros(2, 1), 1.0)
    generator = seeded_generator(torch.device("cpu"))
    betas = made.rungs(num_rungs)
    log_w, _ = anneal(made, made.path.draw_base(40_000, generator), betas, generator)
    work = log_w[-1] - 0.5 * math.log(2 * math.pi)
    assert_close(work.mean(), MEAN_WORK[num_rungs], work.std() / math.sqrt(len(work)))
    found = Direction.of(log_w[-1])
    assert_close(found.value, 0.5 * math.log(2 * math.pi) - math.log(2), found.std_error)


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
