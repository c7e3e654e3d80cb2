"""Noise of both signs: the same mean, and of the variance only what is even in the noise."""

from functools import partial

import pytest
import torch
from laws import NUM_SIGMAS, assert_mean
from torch import nn, tensor

import pyro_ebm as ebm
from pyro_ebm.energies import Energy, Gaussian
from pyro_ebm.kernels import HMC, MALA, ULA
from pyro_ebm.objectives import ContrastiveDivergence, DenoisingScoreMatching

PRECISION, PLACE, DRAWS = 0.7, (1.5, -0.4), 40_000
FAR = sum(part**2 for part in PLACE)


class Skewed(Energy):
    """Steeper on the right than on the left, with weights of its parts."""

    def __init__(self):
        super().__init__((2,))
        self.weights = nn.Parameter(tensor([1.0, 0.5, 0.3]))

    def forward(self, x):
        a, b, c = self.weights
        one, other = x[..., 0], x[..., 1]
        return a * (one - 0.3).square() + b * nn.functional.softplus(2 * one) + c * other.pow(4)


def values_at_one_point(objective):
    """Draws of a surrogate at one datum of a Gaussian of a known precision."""
    p = ebm.Boltzmann(Gaussian(torch.zeros(2), PRECISION))
    return objective.surrogate(p, tensor(PLACE).expand(DRAWS, 2)).detach().double()


def assert_variance(values, expected):
    squares = (values - values.mean()).square()
    error = squares.std() / len(values) ** 0.5
    assert (squares.mean() - expected).abs() < NUM_SIGMAS * error


@pytest.mark.parametrize("antithetic", [False, True])
def test_variance_of_contrastive_divergence_is_that_of_the_formula(antithetic):
    h = 0.3
    values = values_at_one_point(ContrastiveDivergence(ULA(step_size=h), antithetic=antithetic))
    even = 2 * 2 * (PRECISION * h) ** 2
    odd = 2 * h * PRECISION**2 * (1 - PRECISION * h) ** 2 * FAR
    assert_variance(values, even if antithetic else even + odd)
    moved = (1 - PRECISION * h) ** 2 * FAR + 2 * 2 * h
    assert_mean(values, PRECISION / 2 * (moved - FAR))


@pytest.mark.parametrize("antithetic", [False, True])
def test_variance_of_denoising_score_matching_is_that_of_the_formula(antithetic):
    sigma = 0.4
    values = values_at_one_point(DenoisingScoreMatching(sigma, antithetic=antithetic))
    left = 1 - PRECISION * sigma**2
    even = 2 * left**4 / 2
    odd = (PRECISION * sigma * left) ** 2 * FAR
    assert_variance(values, even if antithetic else even + odd)
    assert_mean(values, -0.5 * ((PRECISION * sigma) ** 2 * FAR + 2 * left**2))


OBJECTIVES = {
    "CD by ULA": partial(ContrastiveDivergence, ULA(step_size=0.05), 3),
    "CD by MALA": partial(ContrastiveDivergence, MALA(step_size=0.5), 3),
    "DSM": partial(DenoisingScoreMatching, 0.5),
}


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_gradient_has_the_same_mean_on_a_skewed_target(make):
    x = torch.randn(8, 2)
    found = []
    for antithetic in (False, True):
        energy, slopes = Skewed(), []
        objective, p = make(antithetic=antithetic), ebm.Boltzmann(energy)
        for _ in range(200):
            value = objective.surrogate(p, x.repeat(20, 1)).mean()
            slopes.append(torch.autograd.grad(value, energy.weights)[0])
        found.append(torch.stack(slopes))
    single, paired = found
    error = ((single.var(0) + paired.var(0)) / len(single)).sqrt()
    assert ((single.mean(0) - paired.mean(0)).abs() < NUM_SIGMAS * error).all()
    assert (paired.mean(0).abs() > NUM_SIGMAS * error).all()  # a wrong sign would show


def test_two_chains_of_a_datum_make_opposite_steps():
    """Without an energy they move by noise alone, and their sum stays where it was."""
    objective = ContrastiveDivergence(ULA(step_size=0.1), 5, antithetic=True)
    flat = Gaussian(torch.zeros(2), 1e-12)
    x = torch.randn(7, 2)
    start = x.repeat(2, 1)
    end = objective.move(ebm.Boltzmann(flat), (7,), start, "x").z
    assert (end - start).abs().min() > 0
    torch.testing.assert_close(end[:7] - x, x - end[7:], rtol=1e-4, atol=1e-5)
    assert (end[:7] - x).std(0).min() > 0.1  # each datum has noise of its own


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda: ContrastiveDivergence(HMC(step_size=0.1), antithetic=True),
            "kernel must be ULA or MALA, got HMC",
        ),
        (
            lambda: ContrastiveDivergence(MALA(), antithetic=True).surrogate(
                ebm.Boltzmann(partial(lambda x, y: (x - y).square(), y=0.0), event_shape=()),
                torch.randn(3),
                "place",
            ),
            "that of site 'place' is not: leave it out",
        ),
    ],
)
def test_says_what_it_cannot_do(use, message):
    with pytest.raises(ValueError, match=message):
        use()
