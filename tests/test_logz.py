"""log Z by quadrature is exact, says how exact, and refuses what it cannot reach."""

import math

import pytest
import torch
from cases import ENERGIES_EXACT
from torch import tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import MLP, Funnel, Gaussian, Laplace

SMALL = {
    name: make
    for name, make in ENERGIES_EXACT.items()
    if make().event_shape.numel() <= 3 and name != "funnel"
} | {"gaussian_3d": lambda: Gaussian(tensor([1.0, -2.0, 5.0]), tensor([0.5, 4.0, 1.0]))}


HARD = {"laplace_vector": 1e-3}
"""A kink converges slowly: a tolerance that the grid can reach."""


@pytest.mark.parametrize("name", SMALL)
def test_equals_the_closed_form_within_the_error_that_it_states(name):
    energy = SMALL[name]()
    estimate = ebm.logz.quadrature(
        ebm.Boltzmann(energy), half_width=150.0, tol=HARD.get(name, 1e-6)
    )
    assert abs(estimate.value - energy.log_z().item()) < 5 * estimate.std_error + 1e-9
    assert estimate.lower <= estimate.value <= estimate.upper
    assert estimate.std_error < HARD.get(name, 1e-6)


def test_sees_the_temperature_and_the_support():
    hot = ebm.Boltzmann(Gaussian(tensor([1.0, 2.0]), 3.0), temperature=2.0)
    assert ebm.logz.quadrature(hot).value == pytest.approx(math.log(2 * math.pi * 2 / 3), abs=1e-6)
    half = ebm.Boltzmann(lambda x: 2 * x, event_shape=(), support=constraints.positive)
    assert ebm.logz.quadrature(half).value == pytest.approx(-math.log(2), abs=1e-5)


@pytest.mark.parametrize("degrees", [3.0, 2.0])
def test_heavy_tails_are_within_the_error_that_it_states(degrees):
    p = ebm.Boltzmann(lambda x: (degrees + 1) / 2 * (x.square() / degrees).log1p(), event_shape=())
    z = ebm.logz.quadrature(p)
    exact = math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2)
    exact += math.log(degrees * math.pi) / 2
    assert abs(z.value - exact) < 5 * z.std_error
    assert z.std_error < 2e-6


def test_mass_by_a_pole_at_the_edge_of_the_support_is_found():
    p = ebm.Boltzmann(lambda x: x + 0.9 * x.log(), event_shape=(), support=constraints.positive)
    z = ebm.logz.quadrature(p)
    assert abs(z.value - math.lgamma(0.1)) < 5 * z.std_error


@pytest.mark.parametrize("shift", [-45.0, 48.0])
def test_mass_across_the_edge_of_the_first_box_is_found(shift):
    p = ebm.Boltzmann(Gaussian(tensor([shift, 0.0]), 0.04), temperature=2.0)
    z = ebm.logz.quadrature(p)
    assert abs(z.value - math.log(2 * math.pi * 50)) < 5 * z.std_error + 1e-9


def test_normalizes_a_learned_energy():
    p = ebm.Boltzmann(MLP((2,), (8,), base_scale=1.5))
    log_z = ebm.logz.quadrature(p).value
    grid = torch.linspace(-15, 15, 801)
    x = torch.cartesian_prod(grid, grid)
    mass = (p.log_prob(x) - log_z).exp().sum() * (grid[1] - grid[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("boltzmann", "message"),
    [
        (lambda: ebm.Boltzmann(Gaussian(torch.zeros(4), 1.0)), "one to three unconstrained"),
        (lambda: ebm.Boltzmann(Gaussian(torch.zeros(1), 1.0)).expand([2]), "got batch_shape"),
        (lambda: ebm.Boltzmann(Laplace(torch.zeros(2), 1e-4)), "did not reach tol=1e-06"),
        (lambda: ebm.Boltzmann(Funnel(3, scale=1.0)), "did not reach tol=1e-06"),
        (lambda: ebm.Boltzmann(lambda x: 0 * x, event_shape=()), "not normalisable"),
        (lambda: ebm.Boltzmann(lambda x: x, event_shape=()), "not normalisable"),
        (lambda: ebm.Boltzmann(torch.log, event_shape=()), "not finite at .* points of the grid"),
    ],
)
def test_refuses_what_it_cannot_integrate(boltzmann, message):
    with pytest.raises(ValueError, match=message):
        ebm.logz.quadrature(boltzmann())
