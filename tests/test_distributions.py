"""An energy is a Pyro citizen: every place that takes a distribution takes a Boltzmann."""

import copy
import functools
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import ENERGIES, ENERGIES_EXACT
from laws import assert_chain_mean, assert_close, assert_mean, assert_same_law
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import tensor
from torch.distributions import constraints

import pyro_ebm as ebm
from pyro_ebm.energies import MLP, RBM, Banana, DoubleWell, Gaussian, Ising, Laplace
from pyro_ebm.potential import Potential


def unnormalized(law, support=constraints.real):
    """A known law of numbers, known only up to a factor."""
    return ebm.Boltzmann(lambda x: 3.0 - law.log_prob(x), event_shape=(), support=support)


@pytest.mark.parametrize("name", ENERGIES)
def test_log_prob_is_minus_the_energy_minus_log_z(name):
    energy = ENERGIES[name]()
    p = ebm.Boltzmann(energy)
    x = torch.randn(4, 3, *energy.event_shape)
    expected = -energy(x) - (energy.log_z() if energy.has_log_z else 0)
    assert p.is_normalized == energy.has_log_z
    torch.testing.assert_close(p.log_prob(x), expected)
    hot = ebm.Boltzmann(energy, temperature=2.0)
    assert not hot.is_normalized
    torch.testing.assert_close(hot.log_prob(x), -energy(x) / 2)
    given = ebm.Boltzmann(energy, temperature=2.0, log_z=1.5)
    assert given.is_normalized
    torch.testing.assert_close(given.log_prob(x), -energy(x) / 2 - 1.5)


def test_another_energy_has_another_log_z():
    p = ebm.Boltzmann(Banana(1.0, 0.4), temperature=2.0, log_z=1.5)
    other = p.with_energy(lambda x: x.pow(4).sum(-1))
    assert not other.is_normalized
    x = torch.randn(5, 2)
    torch.testing.assert_close(other.log_prob(x), -x.pow(4).sum(-1) / 2)
    assert p.is_normalized


@pytest.mark.parametrize("name", ENERGIES_EXACT)
def test_sample_is_exact_where_the_energy_knows_how(name):
    energy = ENERGIES_EXACT[name]()
    draws = ebm.Boltzmann(energy).sample((3000,))
    assert draws.shape == (3000, *energy.event_shape)
    assert_same_law(energy(draws), energy(energy.sample(3000)))


@pytest.mark.parametrize(
    ("law", "support"),
    [
        (lambda: dist.Laplace(1.5, 0.5), constraints.real),
        (lambda: dist.Gamma(3.0, 2.0), constraints.positive),
        (lambda: dist.Beta(2.0, 5.0), constraints.unit_interval),
    ],
)
def test_sample_is_near_the_law_where_it_is_approximate(law, support):
    draws = unnormalized(law(), support).sample((400,))
    assert support.check(draws).all()
    assert_mean(draws, law().mean)
    assert_same_law(draws, law().sample((4000,)))


def test_shapes_follow_pyro():
    p = ebm.Boltzmann(MLP((2,)))
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    wide = p.expand([5, 3])
    assert wide.log_prob(torch.zeros(2)).shape == (5, 3)
    assert wide.sample((4,)).shape == (4, 5, 3, 2)
    assert wide.to_event(1).log_prob(torch.zeros(5, 3, 2)).shape == (5,)
    assert wide.to_event(1).event_shape == (3, 2)
    masked = wide.mask(tensor([True, False, True]))
    assert masked.log_prob(torch.ones(5, 3, 2))[:, 1].eq(0).all()
    assert p.log_prob(torch.zeros(7, 1, 3, 2)).shape == (7, 1, 3)


def test_an_extra_dimension_on_the_left_is_a_batch():
    slope = tensor([1.0, 2.0, 3.0])
    p = ebm.Boltzmann(lambda x: slope * x.square(), event_shape=()).expand([3])
    torch.testing.assert_close(p.log_prob(torch.ones(4, 3)), -slope.expand(4, 3))
    torch.testing.assert_close(p.log_prob(torch.ones(())), -slope)


def test_works_under_pyros_handlers():
    energy = Banana(1.0, 0.4)

    def model():
        with pyro.plate("rows", 4), poutine.scale(scale=2.0):
            return pyro.sample("x", ebm.Boltzmann(energy))

    x = energy.sample(4)
    trace = poutine.trace(poutine.condition(model, {"x": x})).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), 2 * (-energy(x) - energy.log_z()).sum())
    assert poutine.trace(poutine.mask(model, mask=False)).get_trace().log_prob_sum() == 0
    drawn = poutine.trace(model).get_trace()
    assert poutine.replay(model, trace=drawn)() is drawn.nodes["x"]["value"]
    assert poutine.uncondition(poutine.condition(model, {"x": x}))().shape == (4, 2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_is_copied_whole(duplicate):
    p = ebm.Boltzmann(MLP((2,), (8,)), temperature=3.0).expand([5])
    twin = duplicate(p)
    x = torch.randn(5, 2)
    torch.testing.assert_close(twin.log_prob(x), p.log_prob(x))
    assert twin.energy is not p.energy


def test_keeps_dtype():
    p = ebm.Boltzmann(MLP((2,), (8,)).float())
    assert p.sample((3,)).dtype == torch.float32
    assert p.log_prob(torch.zeros(2, dtype=torch.float32)).dtype == torch.float32


LATENT = {
    "learned": lambda: ebm.Boltzmann(MLP((2,), (8,), base_scale=2.0).requires_grad_(False)),
    "exact": lambda: ebm.Boltzmann(Banana(1.0, 0.4)),
    "interval": lambda: unnormalized(dist.Beta(2.0, 5.0), constraints.unit_interval),
    "positive": lambda: unnormalized(dist.Gamma(3.0, 2.0), constraints.positive),
    "simplex": lambda: ebm.Boltzmann(
        lambda x: -(tensor([1.0, 2.0, 3.0]) * x.log()).sum(-1),
        event_shape=(3,),
        support=constraints.simplex,
    ),
}


def latent_model(name):
    p = LATENT[name]()

    def model():
        with pyro.plate("rows", 2):
            x = pyro.sample("x", p)
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=tensor(0.5))

    return model, (2, *p.event_shape)


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("kernel", [NUTS, functools.partial(HMC, num_steps=3)])
def test_stock_mcmc_needs_no_extra_argument(kernel, name):
    model, shape = latent_model(name)
    mcmc = MCMC(kernel(model), num_samples=6, warmup_steps=6, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["x"]
    assert draws.shape == (6, *shape)
    assert LATENT[name]().support.check(draws).all()


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize(
    "guide", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoIAFNormal]
)
def test_stock_svi_and_autoguides_need_no_extra_argument(guide, name):
    model, shape = latent_model(name)
    autoguide = guide(model)
    elbo = Trace_ELBO() if guide is AutoIAFNormal else TraceMeanField_ELBO()
    svi = SVI(model, autoguide, pyro.optim.Adam({"lr": 0.01}), elbo)
    losses = [svi.step() for _ in range(3)]
    assert all(torch.tensor(losses).isfinite())
    draws = Predictive(model, guide=autoguide, num_samples=5)()["x"]
    assert draws.shape[0] == 5
    assert draws.reshape(5, -1).shape[1] == torch.Size(shape).numel()


@pytest.mark.parametrize("name", LATENT)
def test_predictive_draws_from_the_prior(name):
    model, shape = latent_model(name)
    draws = Predictive(model, num_samples=7)()["x"]
    assert draws.shape == (7, *shape)


def test_stock_nuts_samples_an_unnormalized_prior_right():
    p = unnormalized(dist.Gamma(3.0, 2.0), constraints.positive)

    def model():
        x = pyro.sample("x", p.expand([30]).to_event(1))  # 30 copies: 30 independent chains
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=x.sum() * 0)

    mcmc = MCMC(NUTS(model), num_samples=250, warmup_steps=150, disable_progbar=True)
    mcmc.run()
    assert_chain_mean(mcmc.get_samples()["x"].T, 1.5)


def test_energy_factor_multiplies_the_joint_density():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ebm.energy_factor("pull", lambda z: 1.5 * (z - 2.0).square(), z)

    trace = poutine.trace(poutine.condition(model, {"z": tensor(0.5)})).get_trace()
    expected = dist.Normal(0.0, 1.0).log_prob(tensor(0.5)) - 1.5 * 1.5**2
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    # N(0, 1) exp(-3 (z - 2)^2 / 2) is N(3 * 2 / 4, 1 / 4)
    mcmc = ebm.MCMC(ebm.kernels.MALA(model), 60, 60, num_chains=200, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["z"]
    assert_chain_mean(draws, 1.5)
    assert_chain_mean((draws - 1.5).square(), 0.25)


def test_approximate_draws_keep_a_condition_per_place_in_the_batch():
    loc = tensor([-3.0, 0.0, 4.0])
    p = ebm.Boltzmann(lambda x: 2 * (x - loc).square(), event_shape=()).expand([3])
    draws = p.sample((300,))
    assert draws.shape == (300, 3)
    assert_close(draws.mean(0), loc, draws.std(0) / 300**0.5)


def test_temperatures_are_a_batch_of_laws():
    temperature = tensor([0.5, 3.0])
    p = ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0), temperature=temperature)
    assert p.batch_shape == (2,)
    x = torch.randn(5, 2, 2)
    torch.testing.assert_close(p.log_prob(x), -x.square().sum(-1) / 2 / temperature)
    z = torch.randn(7, 4)
    value, _ = Potential.of(p).value_and_grad(z)
    torch.testing.assert_close(value, -p.log_prob(z.reshape(7, 2, 2)).sum(-1))
    draws = p.sample((400,))
    squares = draws.square().sum(-1)
    assert_close(squares.mean(0), 2 * temperature, squares.std(0) / 400**0.5)


def test_each_temperature_has_draws_by_sweeps_of_its_own():
    temperature = tensor([0.5, 3.0])
    p = ebm.Boltzmann(Ising((4, 5), 0.0, 0.7), temperature=temperature)
    mean = p.sample((200,)).mean((-2, -1))
    assert_close(mean.mean(0), (0.7 / temperature).tanh(), mean.std(0) / 200**0.5)


def test_a_tempered_rbm_has_draws_of_its_free_energy_over_the_temperature():
    """Not of the joint energy over it; of seventeen units, which are too many to list."""
    rbm = RBM(3.0 * torch.ones(17, 1), torch.linspace(-2.0, 0.0, 17) - 1.0, tensor([1.0]))
    temperature = tensor([2.0, 1.0])
    draws = ebm.Boltzmann(rbm, temperature=temperature).sample((1000,))
    points = torch.cartesian_prod(*17 * [tensor([0.0, 1.0])])
    probs = (-rbm(points)[:, None] / temperature).softmax(0)
    assert_mean(draws, probs.T @ points)


def test_says_what_it_is_the_law_of():
    def pull(x):
        return x.square().sum(-1)

    assert repr(ebm.Boltzmann(MLP((2,)))) == "Boltzmann(MLP, event_shape=(2,))"
    warm = ebm.Boltzmann(pull, event_shape=(3,), temperature=2.0).expand([4])
    assert repr(warm) == "Boltzmann(pull, batch_shape=(4,), event_shape=(3,), temperature=2.0)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ebm.Boltzmann(3.0), "energy must be callable, got float"),
        (lambda: ebm.Boltzmann(lambda x: x), "event_shape is needed"),
        (
            lambda: ebm.Boltzmann(Laplace(torch.zeros(2), 1.0), event_shape=(3,)),
            r"event_shape \(3,\) contradicts the energy's \(2,\)",
        ),
        (
            lambda: ebm.Boltzmann(lambda x: x, event_shape=(3,), support=constraints.positive),
            "event_dim 0, but event_shape is",
        ),
        (lambda: ebm.Boltzmann(DoubleWell(), temperature=0.0), "temperature must be positive"),
        (lambda: ebm.Boltzmann(MLP((2,))).log_z, "estimate it with pyro_ebm.logz"),
        (
            lambda: ebm.Boltzmann(lambda x: x[..., :1], event_shape=(2,)).log_prob(
                torch.ones(5, 2)
            ),
            r"shape \(5, 2\) to shape \(5,\), one number of nats per point, got \(5, 1\)",
        ),
        (
            lambda: ebm.energy_factor("f", torch.ones(3)),
            "factor 'f' must be a callable that maps args to nats, got Tensor",
        ),
        (
            lambda: ebm.energy_factor("f", lambda z: z > 0, torch.ones(3)),
            "factor 'f' must return a floating-point tensor of nats, got torch.bool",
        ),
        (
            lambda: ebm.Boltzmann(Gaussian(torch.zeros(2), 1.0), validate_args=True).log_prob(
                tensor([0.0, torch.nan])
            ),
            "to be within the support",
        ),
    ],
)
def test_refuses_what_it_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
