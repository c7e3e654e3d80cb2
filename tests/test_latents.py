"""Energies within a model: as the prior of latents, and several of them at once."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_mean
from pyro.infer import SVI
from torch import nn, tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import Energy
from pyro_ebm.kernels import HMC, MALA, ULA
from pyro_ebm.objectives import (
    Adversarial,
    ContrastiveDivergence,
    ImprovedCD,
    Jarzynski,
    MaximumLikelihood,
    PersistentCD,
    ShortRun,
)

REPLICATES = 24


class Quadratic(Energy):
    """E(z) = lambda z^2 / 2, or a sum of such over a vector of independent replicates."""

    def __init__(self, precision):
        super().__init__(precision.shape)
        self.precision = nn.Parameter(precision)

    def forward(self, z):
        energy = 0.5 * self.precision * z.square()
        return energy.sum(-1) if self.event_shape else energy


class Linear(Energy):
    """E(z) = lambda z over z > 0, or a sum of such over a vector of independent replicates."""

    def __init__(self, rate):
        positive = constraints.independent(constraints.positive, rate.dim())
        super().__init__(rate.shape, positive)
        self.rate = nn.Parameter(rate)

    def forward(self, z):
        energy = self.rate * z
        return energy.sum(-1) if self.event_shape else energy


def persistent():
    return PersistentCD(MALA(step_size=0.1), num_chains=50, num_steps=2)


OBJECTIVES = {
    "ml": lambda family: MaximumLikelihood(),
    "cd": lambda family: ContrastiveDivergence(MALA(step_size=0.1), num_steps=2),
    "pcd": lambda family: persistent(),
    "short-run": lambda family: ShortRun(MALA(step_size=0.1), num_steps=5),
    "improved-cd": lambda family: ImprovedCD(ULA(step_size=0.01), num_steps=2),
    "jarzynski": lambda family: Jarzynski(ULA(step_size=0.01), num_chains=50),
    "adversarial": lambda family: Adversarial(lambda: family(0.0, 1.0)),
}
"""All that serve a latent, given a family over its support."""

LATENTS = {
    "gaussian": (lambda: Quadratic(tensor(0.7)), dist.Normal),
    "exponential": (lambda: Linear(tensor(1.6)), dist.LogNormal),
}
"""An energy of a latent, and the family of its guide."""


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_guide_gets_the_gradient_of_the_energy_of_its_latent(objective, latent, temperature):
    r"""E_q[-E(z)/T] in closed form, draw by draw: with z = m + s xi it is that of -E(m + s xi)/T.

    Through z the loss E_q[log q(z) + E(z)/T - log p(x | z)] has the gradient of its three terms.
    """
    make, family = LATENTS[latent]
    energy = make()
    m, s = (nn.Parameter(value) for value in (tensor([0.4, -0.2, 0.1]), tensor([0.5, 0.3, 0.8])))
    x = tensor([1.0, 0.5, -0.7])
    drawn = []

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", ebm.Boltzmann(energy, temperature=temperature))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 3):
            drawn.append(pyro.sample("z", family(m, s)).detach())

    OBJECTIVES[objective](family).differentiable_loss(model, guide).backward()
    z = drawn[-1]
    if latent == "gaussian":
        xi = (z - m.detach()) / s.detach()
        through_z = energy.precision.detach() * z / temperature + (z - x)
        expected_m, expected_s = through_z, through_z * xi - 1 / s.detach()
    else:  # z = exp(m + s xi), and log q(z) = -xi^2 / 2 - log s - log z
        xi = (z.log() - m.detach()) / s.detach()
        through_z = (energy.rate.detach() / temperature + (z - x)) * z - 1
        expected_m, expected_s = through_z, through_z * xi - 1 / s.detach()
    torch.testing.assert_close(m.grad, expected_m)
    torch.testing.assert_close(s.grad, expected_s)


def test_expected_gradient_of_a_gaussian_prior_is_in_closed_form():
    """E_q[-lambda z^2 / 2] = -lambda (m^2 + s^2) / 2: its slopes are -lambda m and -lambda s."""
    precision, loc, scale = 0.7, 1.3, 0.6
    energy = Quadratic(tensor(precision))
    m, s = nn.Parameter(torch.full((4000,), loc)), nn.Parameter(torch.full((4000,), scale))

    def model():
        with pyro.plate("data", 4000):
            pyro.sample("z", ebm.Boltzmann(energy))

    def guide():
        with pyro.plate("data", 4000):
            pyro.sample("z", dist.Normal(m, s))

    persistent().differentiable_loss(model, guide).backward()
    assert_mean(m.grad, precision * loc)
    assert_mean(s.grad, precision * scale - 1 / scale)


def test_energy_of_a_latent_learns_from_the_guide_against_the_chains():
    energy = Quadratic(tensor(0.7))
    objective = persistent()
    drawn = []

    def model():
        with pyro.plate("data", 5):
            pyro.sample("z", ebm.Boltzmann(energy))

    def guide():
        with pyro.plate("data", 5):
            drawn.append(pyro.sample("z", dist.Normal(1.0, 0.5)))

    objective.differentiable_loss(model, guide).backward()
    against = 5 * objective.chains["z"].square().mean()
    expected = (drawn[-1].square().sum() - against) / 2
    torch.testing.assert_close(energy.precision.grad, expected)


# -------------------------------------------------------------------------- several energy sites


def two_sites(gaussian, exponential, subsample_size=None):
    """One energy for each row, another for each of its three entries."""

    def model(x, w):
        with pyro.plate("rows", len(x), subsample_size=subsample_size) as i:
            pyro.sample("x", ebm.Boltzmann(gaussian), obs=x[i])
            with pyro.plate("entries", 3):
                pyro.sample("w", ebm.Boltzmann(exponential), obs=w[:, i])

    return model


@pytest.mark.parametrize("subsample_size", [None, 20])
def test_each_site_has_its_own_chains_and_its_scale(subsample_size):
    """With N rows, n of them seen: N/n times the sum over those seen, minus N chain means."""
    gaussian, exponential = Quadratic(tensor(0.7)), Linear(tensor(2.0))
    x, w = torch.randn(60), torch.randn(3, 60).exp()
    objective = persistent()
    rows = []

    def model(x, w):
        trace = pyro.poutine.trace(two_sites(gaussian, exponential, subsample_size))
        sites = trace.get_trace(x, w).nodes
        rows.append((sites["x"]["value"], sites["w"]["value"]))

    objective.differentiable_loss(model, ebm.no_guide, x, w).backward()
    seen_x, seen_w = rows[-1]
    assert len(seen_x) == (subsample_size or 60)
    chains_x, chains_w = objective.chains["x"], objective.chains["w"].exp()
    torch.testing.assert_close(
        gaussian.precision.grad,
        60 * (seen_x.square().mean() - chains_x.square().mean()) / 2,
    )
    torch.testing.assert_close(exponential.rate.grad, 180 * (seen_w.mean() - chains_w.mean()))


def test_two_energies_learn_under_one_objective():
    """Maximum likelihood in closed form: lambda = 1 / mean x^2, and the rate 1 / mean w."""
    gaussian = Quadratic(torch.full((REPLICATES,), 0.8))
    exponential = Linear(torch.full((REPLICATES,), 0.8))
    x = 0.7 * torch.randn(200, REPLICATES)
    w = dist.Exponential(2.5).sample((3, 200, REPLICATES))
    kernel = HMC(step_size=0.4, num_steps=4)
    objective = PersistentCD(kernel, num_chains=400, num_steps=2)
    optimizer = pyro.optim.LambdaLR(
        {
            "optimizer": torch.optim.SGD,
            "optim_args": {"lr": 2.0 / 600},
            "lr_lambda": lambda t: 1 / (1 + t / 20),
        }
    )
    model = two_sites(gaussian, exponential, subsample_size=50)
    svi = SVI(model, ebm.no_guide, optimizer, objective)
    for _ in range(300):
        svi.step(x, w)
        optimizer.step()
    assert objective.chains["x"].shape == objective.chains["w"].shape == (400, REPLICATES)
    assert_mean(gaussian.precision.detach() * x.square().mean(0), 1.0)
    assert_mean(exponential.rate.detach() * w.mean((0, 1)), 1.0)
