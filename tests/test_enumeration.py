"""Small discrete energies in stock Pyro: enumerated, normalised, drawn."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_chain_mean, assert_mean
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Trace_ELBO,
    TraceEnum_ELBO,
    config_enumerate,
)
from pyro.infer.mcmc.util import initialize_model
from torch import nn, tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import RBM, Ising, spins

SPINS = constraints.independent(spins, 1)


def ring():
    return Ising((3,), nn.Parameter(tensor(0.4)), nn.Parameter(tensor([0.3, -0.5, 0.9])))


def all_spins(size):
    return ebm.Boltzmann(Ising((size,), 0.0, periodic=False)).enumerate_support()


def test_trace_enum_sums_over_a_latent_of_several_sites():
    energy = ring()
    y = torch.randn(5, 3)
    mu = tensor(0.7, requires_grad=True)

    @config_enumerate
    def model(y):
        pyro.module("energy", energy)
        with pyro.plate("data", len(y)):
            s = pyro.sample("s", ebm.Boltzmann(energy))
            pyro.sample("y", dist.Normal(mu * s, 1.0).to_event(1), obs=y)

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, lambda y: None, y)
    s = all_spins(3)
    log_prior = -energy(s) - energy.log_z()
    log_lik = dist.Normal(mu * s[:, None], 1.0).to_event(1).log_prob(y)
    exact = -(log_prior[:, None] + log_lik).logsumexp(0).sum()
    torch.testing.assert_close(loss, exact)
    learned = (mu, *energy.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, learned), torch.autograd.grad(exact, learned)
    )


def coupling_model(y):
    k = pyro.sample("k", dist.Normal(0.2, 0.5))

    def energy(s):
        return -k * (s * s.roll(1, -1)).sum(-1) - 0.3 * s[..., 0]

    s = pyro.sample("s", ebm.Boltzmann(energy, event_shape=(4,), support=SPINS))
    pyro.sample("y", dist.Normal(s, 0.8).to_event(1), obs=y)


def log_joint_of_coupling(k, y):
    s = all_spins(4)
    log_weight = k[:, None] * (s * s.roll(1, -1)).sum(-1) + 0.3 * s[:, 0]
    log_prior = log_weight - log_weight.logsumexp(-1, keepdim=True)
    log_lik = dist.Normal(s, 0.8).log_prob(y).sum(-1)
    return dist.Normal(0.2, 0.5).log_prob(k) + (log_prior + log_lik).logsumexp(-1)


READINGS = tensor([1.3, 0.6, -0.9, 0.4])


def test_a_potential_of_pyro_has_log_z_of_a_coupling_that_is_latent():
    """Without log Z in it, the posterior of k would be another."""
    _, potential, _, _ = initialize_model(
        coupling_model, (READINGS,), max_plate_nesting=0, skip_jit_warnings=True
    )
    k = tensor([-1.0, 0.0, 0.3, 1.5], requires_grad=True)
    found, exact = (
        torch.stack([-potential({"k": v}) for v in k]),
        log_joint_of_coupling(k, READINGS),
    )
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), k), torch.autograd.grad(exact.sum(), k)
    )


@pytest.mark.slow
def test_nuts_of_pyro_samples_the_exact_posterior_of_a_coupling():
    chains = []
    for _ in range(8):
        mcmc = MCMC(
            NUTS(coupling_model, max_plate_nesting=0),
            num_samples=100,
            warmup_steps=60,
            disable_progbar=True,
        )
        mcmc.run(READINGS)
        chains.append(mcmc.get_samples()["k"])
    k = torch.linspace(-4, 4, 4001)
    probs = log_joint_of_coupling(k, READINGS).softmax(0)
    assert_chain_mean(torch.stack(chains), (probs * k).sum())


def test_a_large_site_that_hangs_on_a_latent_is_still_refused():
    def model():
        k = pyro.sample("k", dist.Normal(0.2, 0.5))
        p = ebm.Boltzmann(lambda s: -k * s.sum(-1), event_shape=(20,), support=SPINS)
        pyro.sample("s", p, obs=torch.ones(20))

    with pytest.raises(ValueError, match="log Z does too"):
        MCMC(NUTS(model), num_samples=1, warmup_steps=1, disable_progbar=True).run()


def test_a_plain_elbo_is_exact_for_a_small_site():
    energy = ring()
    x = all_spins(3)[tensor([0, 3, 7, 7, 5])]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    loss = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).evaluate_loss(x)
    assert loss == pytest.approx((energy(x) + energy.log_z()).sum().item())


def test_an_objective_takes_the_place_of_a_sum_that_no_one_asked_for():
    energy = RBM(torch.randn(4, 2), torch.randn(4), nn.Parameter(torch.randn(2)))
    p = ebm.Boltzmann(energy)
    assert p.is_normalized
    assert p.sums_log_z
    x = p.sample((6,))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    objective = ebm.objectives.PseudoLikelihood()
    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.1}), loss=objective)
    expected = -objective.surrogate(p, x).sum().item()
    assert svi.evaluate_loss(x) == pytest.approx(expected)
    given = ebm.Boltzmann(energy, log_z=energy.log_z())
    assert given.is_normalized
    assert not given.sums_log_z


def test_a_conditional_energy_is_normalised_for_each_datum():
    weight = nn.Parameter(torch.randn(3))

    class Net(nn.Module):
        def forward(self, x, c):
            together = torch.cat([x, c.expand(*x.shape[:-1], 3)], -1)  # does not broadcast on x
            return -(together[..., :3] * together[..., 3:] * weight).sum(-1)

    c = torch.randn(5, 3)
    points = all_spins(3)[:, None].expand(-1, 5, -1)
    for energy in (functools.partial(Net(), c=c), lambda x: Net()(x, c)):
        p = ebm.Boltzmann(energy, event_shape=(3,), support=SPINS)
        torch.testing.assert_close(p.log_prob(points).exp().sum(0), torch.ones(5))
        exact = (1 + (2 * weight * c).exp()).log().sum(-1) - (weight * c).sum(-1)
        x = points[2]
        torch.testing.assert_close(p.log_prob(x), (x * weight * c).sum(-1) - exact)


def test_a_condition_that_needs_the_whole_batch_is_given_it():
    c = torch.randn(5, 3)

    def energy(x):
        assert x.shape[-2] in (1, 5)
        return -torch.einsum("...nd,nd->...n", x, c)

    p = ebm.Boltzmann(energy, event_shape=(3,), support=SPINS)
    points = all_spins(3)[:, None].expand(-1, 5, -1)
    torch.testing.assert_close(p.log_prob(points).exp().sum(0), torch.ones(5))


def test_what_is_not_small_does_not_enumerate():
    p = ebm.Boltzmann(Ising((17,), 0.3, 0.1, periodic=False), temperature=2.0)
    assert not p.has_enumerate_support
    assert not p.is_normalized
    with pytest.raises(NotImplementedError, match="at most 65536 points"):
        p.enumerate_support()
    with pytest.raises(NotImplementedError, match="cannot be enumerated"):
        ebm.Boltzmann(lambda x: x**2, event_shape=()).enumerate_support()


def test_draws_of_a_large_energy_are_swept():
    """A chain in a field of its own sites alone: thirty-two sweeps are as good as exact."""
    p = ebm.Boltzmann(Ising((6, 6), 0.0, torch.linspace(-1, 1, 36).reshape(6, 6)))
    x = p.sample((2000,))
    assert x.shape == (2000, 6, 6)
    assert_mean(x, p.energy.field.tanh())
    warm = ebm.Boltzmann(p.energy, temperature=2.0).expand([3]).sample((1000,))
    assert_mean(warm.reshape(3000, 6, 6), (p.energy.field / 2).tanh())


def test_draws_of_any_large_callable_are_points_of_its_support():
    p = ebm.Boltzmann(lambda x: -x.sum(-1), event_shape=(30,), support=SPINS)
    x = p.sample((50,))
    assert x.shape == (50, 30)
    assert bool(p.support.check(x).all())
    assert x.sum(-1).mean() > 5 / math.sqrt(50) * math.sqrt(30)  # better than a random point
