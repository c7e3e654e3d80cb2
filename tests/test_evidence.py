"""The evidence of Pyro models: all constants and Jacobians are in it."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_close
from posteriordb import posterior
from torch import tensor

import pyro_ebm as ebm
from pyro_ebm import logz


def test_of_counts_is_negative_binomial():
    """A positive latent and factorials: a lost constant or Jacobian would show."""
    y = tensor([3.0, 0.0, 4.0, 7.0])

    def model(y, shape=2.5):
        rate = pyro.sample("rate", dist.Gamma(shape, 0.8))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    a, b, n, s = 3.0, 0.8, len(y), y.sum().item()
    exact = a * math.log(b) - math.lgamma(a) + math.lgamma(a + s) - (a + s) * math.log(b + n)
    exact -= torch.lgamma(y + 1).sum().item()
    z = logz.evidence(model, y, shape=a)
    assert_close(z.value, exact, z.std_error)
    assert z.lower < exact < z.upper
    by_bridge = logz.evidence(model, y, shape=a, estimator=logz.bridge)
    assert_close(by_bridge.value, exact, by_bridge.std_error)


def test_of_a_linear_model_with_a_simplex_and_a_correlated_posterior():
    """Two latents of different supports: log of an integral that factorises."""
    x = torch.randn(12, 2) @ tensor([[1.0, 0.9], [0.0, 0.4]])
    y = x @ tensor([1.0, -2.0]) + 0.5 * torch.randn(12)
    kinds, prior = tensor([0, 2, 2, 1, 0, 2, 2, 0, 2, 2]), tensor([1.0, 2.0, 0.5])

    def model():
        beta = pyro.sample("beta", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(x @ beta, 0.5).to_event(1), obs=y)
        p = pyro.sample("p", dist.Dirichlet(prior))
        pyro.sample("kinds", dist.Categorical(p).expand([10]).to_event(1), obs=kinds)

    cov = 0.25 * torch.eye(12) + 9.0 * x @ x.T
    exact = dist.MultivariateNormal(torch.zeros(12), cov).log_prob(y)
    counts = torch.bincount(kinds)
    exact += torch.lgamma(prior.sum()) - torch.lgamma(prior.sum() + 10)
    exact += (torch.lgamma(prior + counts) - torch.lgamma(prior)).sum()
    z = logz.evidence(model, estimator=functools.partial(logz.smc, num_particles=1024))
    assert_close(z.value, exact, z.std_error)


def test_sums_over_discrete_latents():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc + 3 * k, 0.5), obs=tensor(2.0))

    law = dist.Normal(tensor([0.0, 3.0]), math.sqrt(4.25))
    exact = (law.log_prob(tensor(2.0)) + tensor([0.7, 0.3]).log()).logsumexp(0)
    z = logz.evidence(model, estimator=functools.partial(logz.smc, num_particles=1024))
    assert_close(z.value, exact, z.std_error)


def test_of_an_energy_within_a_model_is_its_expectation_under_the_prior():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        ebm.energy_factor("pull", lambda z: 1.5 * (z - 1).square().sum(-1), z)

    exact = 2 * (-0.5 * math.log(4.0) - 0.5 * 3.0 / 4.0)
    z = logz.evidence(model, estimator=functools.partial(logz.smc, num_particles=1024))
    assert_close(z.value, exact, z.std_error)


LOG_EVIDENCE = {
    "eight_schools": (-31.31134752111282, 0.0),
    "arK": (58.587593922264965, 0.0),
    "blr": (-194.96758858960928, 0.0),
    "low_dim_gauss_mix": (-2117.06899 + 2 * math.log(2), 0.0013),
}
"""The log integral of the density of each posterior of https://github.com/stan-dev/posteriordb
@28f8d3d6 as its model states it, normal and half-Cauchy priors normalised, and its error. The
first three are exact: the Gaussian block integrated in closed form, the scale by quadrature. The
last is by importance sampling, on the ordered means, whose law is not renormalised, as are the two
normal priors of its positive scales, by two each; here these are half-normals."""

NUM_SE = 4


def assert_evidence(name, estimator):
    exact, error = LOG_EVIDENCE[name]
    z = logz.evidence(posterior(name).model, estimator=estimator)
    assert abs(z.value - exact) < NUM_SE * math.hypot(z.std_error, error)
    assert z.std_error < 0.1


def test_of_eight_schools():
    assert_evidence("eight_schools", functools.partial(logz.smc, num_particles=1024))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ais", "smc", "bridge", "thermodynamic", "stepping_stone"])
@pytest.mark.parametrize("name", [name for name in LOG_EVIDENCE if name != "low_dim_gauss_mix"])
def test_of_posteriors_with_every_estimator(name, estimator):
    assert_evidence(name, getattr(logz, estimator))


@pytest.mark.slow
def test_of_a_mixture():
    assert_evidence(
        "low_dim_gauss_mix",
        functools.partial(logz.smc, num_particles=512, num_islands=16, reverse=False),
    )
